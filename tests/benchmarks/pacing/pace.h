/* What the files of pace share: settings, buffers, queues of what waits, and one epoll. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define EVENTS 512
#define FAMILY 256

typedef enum { NONE, LOST, DOUBLED, SWAPPED, CUT, ENDED, STATUS } Fault;

/* What the command line asks for; times in nanoseconds. */
typedef struct {
    int port, tokens;
    int64_t interval, ttft, step; /* of the upstream */
    Fault fault;
    const char *request; /* of the load */
    size_t request_length;
    int streams, pid;
    int64_t ramp, duration;
} Settings;

extern Settings asked;

_Noreturn void upstream(void);
int load(void);

/* --- loop.c --- */

typedef struct {
    char *bytes;
    size_t length, room;
} Buffer;

/* What waits, in the order of when it is due. Whoever waits for the same time as all others can join at the end, so that
 * no heap is needed: there is one queue for each length of waiting. */
typedef struct Waiting {
    struct Waiting *before, *after;
    int64_t due;
} Waiting;

extern int alarm_fd; /* in the events, it only says that something is due */

_Noreturn void fail(const char *what);
_Noreturn void refuse(const char *what);
int64_t now(void);
void *grown(void *memory, size_t size);
void append(Buffer *buffer, const char *bytes, size_t length);
void drop(Buffer *buffer, size_t length);
void queue_init(Waiting *queue);
void leave(Waiting *one);
void join(Waiting *queue, Waiting *one, int64_t due);
Waiting *first_due(Waiting *queue, int64_t at);
int64_t earliest(const Waiting *queue, int64_t otherwise);
void watch(int operation, int fd, uint32_t events, void *what);
void poller_init(void);
int poll_until(struct epoll_event *events, int64_t until);
void no_delay(int fd);
bool would_block(void);

/* --- family.c --- */

typedef struct {
    int count;
    int pids[FAMILY];
    int64_t spent[FAMILY]; /* nanoseconds of processor time */
} Family;

Family family_of(int root);
int place_of(const Family *family, int pid);
void take_time_of(Family *family);
long resident_kib(const Family *family);
