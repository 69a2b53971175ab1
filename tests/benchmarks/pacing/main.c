/* pace: a provider that keeps time, and clients that check every token. The load of `make bench`.
 *
 *   pace upstream [--port 0] [--tokens 100] [--interval-us 20000] [--ttft-us 20000]
 *                 [--step-us 0] [--fault lost|doubled|swapped|cut|ended|status]
 *   pace load --port P --request FILE [--streams 100] [--tokens 100] [--ramp-ms 2000] [--seconds 5] [--pid PID]
 *   pace tether COMMAND...
 *
 * The upstream tells its port on standard output. It speaks the wire that a request's path asks for: OpenAI's, Anthropic's
 * or Gemini's. Every token's text is "<number>@<nanoseconds of the monotonic clock when it was written>;". With a fault
 * each stream has that one, in its sixth token: that is how the checker is checked. With a step tokens behind the first
 * come only at multiples of it, those of all streams that are due by then: so an engine makes them, which has a step for
 * all of its streams.
 *
 * The load writes FILE, a whole HTTP request, on each of its connections, and again as soon as it was answered. The moments
 * of the first requests are drawn at random over the ramp: evenly spaced they would meet in one point of the interval, and
 * a hundred tokens would come at once where there is one every 200 us. Then it counts and takes times for so many seconds,
 * together with the processor time and the memory of PID and its descendants. Faults count from the first request on.
 * Streams that are alive at the end are let go. Prints one line of JSON.
 *
 * It is C because what is measured shares a machine with what measures: the same in Python takes a good part of
 * it. One thread, one epoll, and one write for each token, however late it is; no dependency but Linux.
 */
#include "pace.h"

#include <getopt.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

Settings asked = {
    .tokens = 100,
    .interval = 20 * SECOND / 1000,
    .ttft = 20 * SECOND / 1000,
    .streams = 100,
    .ramp = 2 * SECOND,
    .duration = 5 * SECOND,
};

static const struct option OPTIONS[] = {
    {"port", required_argument, NULL, 'p'},
    {"tokens", required_argument, NULL, 't'},
    {"interval-us", required_argument, NULL, 'i'},
    {"ttft-us", required_argument, NULL, 'f'},
    {"step-us", required_argument, NULL, 'g'},
    {"fault", required_argument, NULL, 'x'},
    {"request", required_argument, NULL, 'r'},
    {"streams", required_argument, NULL, 'n'},
    {"ramp-ms", required_argument, NULL, 'm'},
    {"seconds", required_argument, NULL, 's'},
    {"pid", required_argument, NULL, 'c'},
    {0},
};

static Fault fault_named(const char *name) {
    const char *names[] = {"none", "lost", "doubled", "swapped", "cut", "ended", "status"};
    for (int index = 0; index < 7; index++)
        if (!strcmp(names[index], name)) return (Fault)index;
    refuse("--fault: expected lost, doubled, swapped, cut, ended or status");
}

static void read_request(const char *path) {
    static Buffer request;
    char bytes[65536];
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    for (size_t length; (length = fread(bytes, 1, sizeof bytes, file));) append(&request, bytes, length);
    fclose(file);
    asked.request = request.bytes;
    asked.request_length = request.length;
}

int main(int count, char **words) {
    const char *command = count > 1 ? words[1] : "";
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* whoever started this may be killed; nothing is left behind */
    if (!strcmp(command, "tether") && count > 2) {
        execvp(words[2], words + 2);
        fail(words[2]);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    for (int letter; (letter = getopt_long(count - 1, words + 1, "", OPTIONS, NULL)) != -1;) {
        if (letter == 'p') asked.port = atoi(optarg);
        if (letter == 't') asked.tokens = atoi(optarg);
        if (letter == 'i') asked.interval = atoll(optarg) * 1000;
        if (letter == 'f') asked.ttft = atoll(optarg) * 1000;
        if (letter == 'g') asked.step = atoll(optarg) * 1000;
        if (letter == 'x') asked.fault = fault_named(optarg);
        if (letter == 'r') read_request(optarg);
        if (letter == 'n') asked.streams = atoi(optarg);
        if (letter == 'm') asked.ramp = atoll(optarg) * SECOND / 1000;
        if (letter == 's') asked.duration = (int64_t)(atof(optarg) * SECOND);
        if (letter == 'c') asked.pid = atoi(optarg);
        if (letter == '?') return 2;
    }
    if (asked.tokens < 1 || asked.streams < 1) refuse("--tokens and --streams: expected 1 or more");
    if (!strcmp(command, "upstream")) upstream();
    if (strcmp(command, "load")) refuse("expected upstream, load or tether; see the head of main.c");
    if (!asked.request_length || !asked.port) refuse("load: expected --port and --request");
    return load();
}
