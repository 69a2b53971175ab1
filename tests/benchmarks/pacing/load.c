/* Clients that check every token. */
#include "pace.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>

typedef enum { HEAD, SIZE, DATA, DATA_END, TRAILER, FIXED } Part;

static const char DONE[] = "\ndata: [DONE]";

typedef struct {
    Waiting waiting; /* first, so that one is the other */
    int fd;
    bool is_connected, is_kept, has_first, is_stream, is_done;
    size_t sent;
    int64_t asked;
    Part part;
    size_t left;        /* of the body, or of the chunk that is being read */
    char head[8192];    /* of the answer, or the line with a chunk's size */
    size_t head_length;
    int status;
    char said[200];     /* with a status that is no success */
    size_t said_length;
    int digits;         /* of the number that is being read: 0 is none, and -1 that the time behind it is */
    int64_t number, time;
    int matched;        /* how much of DONE has just been seen */
    int highest, seen_count;
    uint8_t *seen;
} Client;

typedef struct {
    int64_t *values;
    size_t count, room;
} Series;

static struct {
    bool is_counting;
    Waiting starts; /* the first requests, and connections that are tried again */
    size_t answers, counted_tokens, lost, doubled, reordered, truncated, refused, broken;
    Series ttft, transit;
    char first_fault[256];
} test;

static void add(Series *series, int64_t value) {
    if (series->count == series->room) {
        series->room = series->room ? 2 * series->room : 65536;
        series->values = grown(series->values, series->room * sizeof *series->values);
    }
    series->values[series->count++] = value;
}

static void fault(size_t *counter, size_t count, const char *name, const char *detail, size_t length) {
    *counter += count;
    if (!count || *test.first_fault) return;
    snprintf(test.first_fault, sizeof test.first_fault, "%s: %.*s", name, (int)(length > 200 ? 200 : length), detail);
    for (char *at = test.first_fault; *at; at++) /* it is shown between quotes */
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\') *at = ' ';
}

static void fault_in(size_t *counter, size_t count, const char *name, int number) {
    char detail[32];
    int length = snprintf(detail, sizeof detail, "token %d", number);
    fault(counter, count, name, detail, (size_t)length);
}

static void see(Client *client, int64_t arrived) {
    int number = (int)client->number;
    if (!client->has_first) {
        client->has_first = true;
        if (test.is_counting) add(&test.ttft, arrived - client->asked);
    }
    if (test.is_counting) {
        test.counted_tokens++;
        add(&test.transit, arrived - client->time);
    }
    if (client->number >= asked.tokens) return fault_in(&test.doubled, 1, "beyond the last", number);
    if (client->seen[number]) return fault_in(&test.doubled, 1, "doubled", number);
    client->seen[number] = 1;
    client->seen_count++;
    if (number < client->highest) fault_in(&test.reordered, 1, "reordered", number);
    if (number > client->highest) client->highest = number;
}

/* Reads body text byte by byte, so that it does not matter where it was cut: tokens, wherever they stand, and the end. */
static void scan(Client *client, const char *bytes, size_t length, int64_t arrived) {
    for (size_t index = 0; index < length; index++) {
        char byte = bytes[index];
        client->matched = byte == DONE[client->matched] ? client->matched + 1 : byte == '\n';
        if (client->matched == (int)sizeof DONE - 1) client->is_done = true, client->matched = 0;
        if (byte >= '0' && byte <= '9') {
            int64_t *value = client->digits < 0 ? &client->time : &client->number;
            if (client->digits == 0) client->number = 0;
            if (*value < INT64_MAX / 100) *value = *value * 10 + (byte - '0');
            if (client->digits >= 0) client->digits++;
        } else if (byte == '@' && client->digits > 0) {
            client->digits = -1;
            client->time = 0;
        } else {
            if (byte == ';' && client->digits < 0) see(client, arrived);
            client->digits = 0;
        }
    }
}

static void expect_answer(Client *client) {
    client->part = HEAD;
    client->head_length = client->said_length = 0;
    client->has_first = client->is_stream = client->is_done = false;
    client->digits = 0;
    client->matched = 1; /* as if a line had ended before the body */
    client->highest = -1;
    client->seen_count = 0;
    memset(client->seen, 0, (size_t)asked.tokens);
}

static void ask(Client *client) {
    if (client->sent == 0) {
        expect_answer(client);
        client->asked = now();
    }
    while (client->sent < asked.request_length) {
        ssize_t sent = send(client->fd, asked.request + client->sent, asked.request_length - client->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (would_block()) watch(EPOLL_CTL_MOD, client->fd, EPOLLIN | EPOLLOUT, client);
            return; /* else it is gone, and reading will tell */
        }
        client->sent += (size_t)sent;
    }
}

static void connect_to(Client *client) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)asked.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    leave(&client->waiting);
    if ((client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0) fail("socket");
    no_delay(client->fd);
    client->is_connected = false;
    client->sent = 0;
    expect_answer(client);
    connect(client->fd, (struct sockaddr *)&address, sizeof address); /* the poller tells how that went */
    watch(EPOLL_CTL_ADD, client->fd, EPOLLIN | EPOLLOUT, client);
}

/* Not at once: where nobody listens that would only burn what is measured. */
static void connect_later(Client *client) {
    close(client->fd);
    client->fd = -1;
    join(&test.starts, &client->waiting, now() + SECOND / 20);
}

static void finish(Client *client) {
    if (client->status != 200) {
        fault(&test.refused, 1, "refused", client->said, client->said_length);
    } else if (client->is_stream && !client->is_done) {
        fault_in(&test.truncated, 1, "ended without its end after", client->highest);
    } else {
        fault_in(&test.lost, (size_t)(asked.tokens - client->seen_count), "lost before the end, last was", client->highest);
        if (test.is_counting) test.answers++;
    }
    client->sent = 0;
    if (client->is_kept) {
        ask(client);
    } else {
        close(client->fd);
        connect_to(client);
    }
}

static const char *header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    return found ? found + strlen(name) : NULL;
}

static void read_head(Client *client) {
    const char *length = header(client->head, "\ncontent-length:"), *coding = header(client->head, "\ntransfer-encoding:");
    client->status = atoi(client->head + strlen("HTTP/1.1 "));
    client->is_stream = header(client->head, "\ncontent-type: text/event-stream") != NULL;
    client->is_kept = !header(client->head, "\nconnection: close");
    client->part = coding ? SIZE : FIXED;
    client->left = coding ? 0 : length ? strtoul(length, NULL, 10) : 0;
}

static void quote(Client *client, const char *bytes, size_t length) {
    if (client->status == 200) return;
    size_t room = sizeof client->said - client->said_length;
    if (length > room) length = room;
    memcpy(client->said + client->said_length, bytes, length);
    client->said_length += length;
}

/* Adds to the line, or the head, that is being read; returns whether it is whole. */
static bool gather(Client *client, char byte, const char *end) {
    if (client->head_length + 1 < sizeof client->head) client->head[client->head_length++] = byte;
    client->head[client->head_length] = 0;
    size_t length = strlen(end);
    return client->head_length >= length && !memcmp(client->head + client->head_length - length, end, length);
}

/* Reads what one recv brought: the head, then the body by its length or in chunks. */
static void hear(Client *client, const char *bytes, size_t length, int64_t arrived) {
    const char *end = bytes + length;
    while (bytes < end) {
        if (client->part == DATA || client->part == FIXED) {
            size_t here = (size_t)(end - bytes) < client->left ? (size_t)(end - bytes) : client->left;
            quote(client, bytes, here);
            scan(client, bytes, here, arrived);
            bytes += here;
            client->left -= here;
            if (client->left) return;
            if (client->part == FIXED) return finish(client);
            client->part = DATA_END;
        } else if (client->part == HEAD) {
            if (!gather(client, *bytes++, "\r\n\r\n")) continue;
            read_head(client);
            quote(client, client->head, (size_t)((char *)memchr(client->head, '\r', client->head_length) - client->head));
            if (client->part == FIXED && !client->left) return finish(client);
            client->head_length = 0;
        } else if (client->part == SIZE) {
            if (!gather(client, *bytes++, "\r\n")) continue;
            client->left = strtoul(client->head, NULL, 16);
            client->head_length = 0;
            client->part = client->left ? DATA : TRAILER;
        } else if (client->part == DATA_END) {
            if (*bytes++ == '\n') client->part = SIZE;
        } else if (gather(client, *bytes++, "\r\n")) { /* an empty line ends the body, any other one is a trailer */
            if (client->head_length == 2) return finish(client);
            client->head_length = 0;
        }
    }
}

static void receive(Client *client) {
    static char bytes[262144];
    ssize_t length = recv(client->fd, bytes, sizeof bytes, 0);
    if (length < 0 && would_block()) return;
    if (length > 0) return hear(client, bytes, (size_t)length, now());
    if (!client->is_connected) {
        fault(&test.broken, 1, "no connection", strerror(errno), strlen(strerror(errno)));
    } else if (client->has_first) {
        fault_in(&test.truncated, 1, "closed after", client->highest);
    } else {
        fault(&test.broken, 1, "closed", "no answer", 9);
    }
    connect_later(client);
}

static void serve_client(Client *client, uint32_t events) {
    if (client->fd < 0) return;
    if (!client->is_connected && (events & EPOLLOUT) && !(events & (EPOLLERR | EPOLLHUP))) client->is_connected = true;
    if (client->is_connected && (events & EPOLLOUT) && client->sent < asked.request_length) {
        watch(EPOLL_CTL_MOD, client->fd, EPOLLIN, client);
        ask(client);
    }
    if (events & ~(uint32_t)EPOLLOUT) receive(client);
}

static void work_until(int64_t until) {
    for (struct epoll_event events[EVENTS]; now() < until;) {
        int count = poll_until(events, earliest(&test.starts, until));
        for (int index = 0; index < count; index++)
            if (events[index].data.ptr != &alarm_fd) serve_client(events[index].data.ptr, events[index].events);
        for (Waiting *one; (one = first_due(&test.starts, now()));) connect_to((Client *)one);
    }
}

static int by_value(const void *one, const void *other) {
    int64_t left = *(const int64_t *)one, right = *(const int64_t *)other;
    return (left > right) - (left < right);
}

static double milliseconds(const Series *sorted, double share) {
    if (!sorted->count) return 0;
    return (double)sorted->values[(size_t)((double)(sorted->count - 1) * share)] / 1e6;
}

static void print_times(const char *name, Series *series) {
    if (series->count) qsort(series->values, series->count, sizeof *series->values, by_value);
    printf(",\"%s_p50_ms\":%.4f,\"%s_p99_ms\":%.4f", name, milliseconds(series, 0.5), name, milliseconds(series, 0.99));
}

static Client *clients_at_random_moments(int64_t from) {
    Client *clients = calloc((size_t)asked.streams, sizeof *clients);
    int64_t *moments = grown(NULL, (size_t)asked.streams * sizeof *moments);
    if (!clients) fail("memory");
    srandom(1); /* the same in each round */
    for (int index = 0; index < asked.streams; index++)
        moments[index] = from + (int64_t)((double)random() / RAND_MAX * (double)asked.ramp);
    qsort(moments, (size_t)asked.streams, sizeof *moments, by_value);
    for (int index = 0; index < asked.streams; index++) {
        clients[index].fd = -1;
        clients[index].seen = grown(NULL, (size_t)asked.tokens);
        join(&test.starts, &clients[index].waiting, moments[index]);
    }
    free(moments);
    return clients;
}

/* Of all processes together, and of the one that did most: of two that share the work, that one is the limit. */
static void print_spent(const Family *before, const Family *after) {
    int64_t all = 0, most = 0;
    for (int index = 0; index < after->count; index++) {
        int place = place_of(before, after->pids[index]);
        int64_t spent = after->spent[index] - (place < 0 ? 0 : before->spent[place]);
        all += spent;
        if (spent > most) most = spent;
    }
    printf(",\"spent_s\":%.6f,\"busiest_s\":%.6f", (double)all / SECOND, (double)most / SECOND);
}

static int64_t own_time(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

int load(void) {
    poller_init();
    queue_init(&test.starts);
    Family before = {0}, after = {0};
    if (asked.pid) before = family_of(asked.pid); /* later the walk over /proc would take its time from what counts */
    long resident_before = resident_kib(&before);
    int64_t began = now();
    clients_at_random_moments(began);
    work_until(began + asked.ramp);

    take_time_of(&before);
    int64_t own_before = own_time(), counted_from = now();
    test.is_counting = true;
    work_until(counted_from + asked.duration);
    test.is_counting = false;
    double seconds = (double)(now() - counted_from) / SECOND;
    double own_cores = (double)(own_time() - own_before) / SECOND / seconds;

    if (asked.pid) {
        after = family_of(asked.pid);
        take_time_of(&after);
    }
    printf("{\"seconds\":%.4f,\"tokens\":%zu,\"answers\":%zu", seconds, test.counted_tokens, test.answers);
    print_times("ttft", &test.ttft);
    print_times("transit", &test.transit);
    printf(",\"lost\":%zu,\"doubled\":%zu,\"reordered\":%zu,\"truncated\":%zu,\"refused\":%zu,\"broken\":%zu,"
           "\"first_fault\":\"%s\"",
           test.lost, test.doubled, test.reordered, test.truncated, test.refused, test.broken, test.first_fault);
    print_spent(&before, &after);
    printf(",\"resident_before_kib\":%ld,\"resident_after_kib\":%ld,\"load_cores\":%.4f}\n", resident_before,
           resident_kib(&after), own_cores);
    return 0;
}
