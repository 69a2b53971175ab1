/* Memory, time, and waiting for whichever comes first: a socket, or what is due. */
#include "pace.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>

_Noreturn void fail(const char *what) {
    fprintf(stderr, "pace: %s: %s\n", what, strerror(errno));
    exit(2);
}

_Noreturn void refuse(const char *what) {
    fprintf(stderr, "pace: %s\n", what);
    exit(2);
}

int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

void *grown(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) fail("memory");
    return memory;
}

void append(Buffer *buffer, const char *bytes, size_t length) {
    if (buffer->length + length > buffer->room) {
        buffer->room = 2 * (buffer->length + length);
        buffer->bytes = grown(buffer->bytes, buffer->room);
    }
    if (length) memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

void drop(Buffer *buffer, size_t length) {
    buffer->length -= length;
    if (buffer->length) memmove(buffer->bytes, buffer->bytes + length, buffer->length);
}

void queue_init(Waiting *queue) { queue->before = queue->after = queue; }

void leave(Waiting *one) {
    if (!one->after) return;
    one->before->after = one->after;
    one->after->before = one->before;
    one->before = one->after = NULL;
}

void join(Waiting *queue, Waiting *one, int64_t due) {
    leave(one);
    one->due = due;
    one->before = queue->before;
    one->after = queue;
    queue->before->after = one;
    queue->before = one;
}

Waiting *first_due(Waiting *queue, int64_t at) {
    return queue->after != queue && queue->after->due <= at ? queue->after : NULL;
}

int64_t earliest(const Waiting *queue, int64_t otherwise) {
    return queue->after != queue && queue->after->due < otherwise ? queue->after->due : otherwise;
}

static int poller;
int alarm_fd;

void watch(int operation, int fd, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(poller, operation, fd, &event) < 0) fail("epoll_ctl");
}

void poller_init(void) {
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    if ((alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0) fail("timerfd_create");
    watch(EPOLL_CTL_ADD, alarm_fd, EPOLLIN, &alarm_fd);
}

/* epoll's own time-out counts milliseconds, and would gather all that is due within one; hence the timer. */
int poll_until(struct epoll_event *events, int64_t until) {
    bool is_due = until <= now();
    if (!is_due) {
        struct itimerspec alarm = {.it_value = {.tv_sec = until / SECOND, .tv_nsec = until % SECOND}};
        timerfd_settime(alarm_fd, TFD_TIMER_ABSTIME, &alarm, NULL);
    }
    int count = epoll_wait(poller, events, EVENTS, is_due ? 0 : -1);
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    return count < 0 ? 0 : count;
}

void no_delay(int fd) {
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

bool would_block(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }
