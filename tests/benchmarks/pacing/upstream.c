/* A provider that keeps time. */
#include "pace.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#define FAULTY_TOKEN 5

typedef enum { OPENAI, ANTHROPIC, GEMINI } Dialect;

typedef struct {
    Waiting waiting; /* first, so that one is the other */
    int fd;
    int next;
    Dialect dialect;
    bool is_answering, wants_usage, is_listening_for_room;
    Buffer in, out;
} Caller;

static Waiting first, later; /* for the first token, and for the next one */
static Buffer scratch; /* what the next write is made of */

static void hang_up(Caller *caller) {
    leave(&caller->waiting);
    close(caller->fd);
    free(caller->in.bytes);
    free(caller->out.bytes);
    free(caller);
}

/* Sends what was made in scratch, and keeps what the socket does not take. */
static void send_scratch(Caller *caller) {
    const char *bytes = scratch.bytes;
    size_t length = scratch.length;
    if (!caller->out.length) {
        ssize_t sent = send(caller->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && !would_block()) sent = (ssize_t)length; /* it is gone; reading will tell */
        if (sent > 0) bytes += sent, length -= (size_t)sent;
    }
    scratch.length = 0;
    append(&caller->out, bytes, length);
    if (caller->out.length && !caller->is_listening_for_room) {
        caller->is_listening_for_room = true;
        watch(EPOLL_CTL_MOD, caller->fd, EPOLLIN | EPOLLOUT, caller);
    }
}

static void send_rest(Caller *caller) {
    ssize_t sent = send(caller->fd, caller->out.bytes, caller->out.length, MSG_NOSIGNAL);
    if (sent < 0 && !would_block()) sent = (ssize_t)caller->out.length;
    if (sent > 0) drop(&caller->out, (size_t)sent);
    if (caller->out.length) return;
    caller->is_listening_for_room = false;
    watch(EPOLL_CTL_MOD, caller->fd, EPOLLIN, caller);
}

static void say(const char *text) { append(&scratch, text, strlen(text)); }

/* One event is one chunk of the body, as providers send them. */
static void chunk(const char *event) {
    char size[32];
    snprintf(size, sizeof size, "%zx\r\n", strlen(event));
    say(size);
    say(event);
    say("\r\n");
}

#define OPENAI_CHUNK                                                                                              \
    "data: {\"id\":\"chatcmpl-Bc4rXJ2mPq\",\"object\":\"chat.completion.chunk\",\"created\":1735689600,\"model\":" \
    "\"bench\",\"system_fingerprint\":\"fp_44709d6f\",\"choices\":["
#define OPENAI_CHOICE "{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s}],\"usage\":null}\n\n"

static void say_openai(const Caller *caller, int number, const char *text) {
    char event[512], delta[128];
    if (number == 0) {
        snprintf(event, sizeof event, OPENAI_CHUNK OPENAI_CHOICE, "\"role\":\"assistant\",\"content\":\"\"", "null");
        chunk(event);
    }
    if (number < asked.tokens) {
        snprintf(delta, sizeof delta, "\"content\":\"%s\"", text);
        snprintf(event, sizeof event, OPENAI_CHUNK OPENAI_CHOICE, delta, "null");
        return chunk(event);
    }
    snprintf(event, sizeof event, OPENAI_CHUNK OPENAI_CHOICE, "", "\"stop\"");
    chunk(event);
    if (caller->wants_usage) {
        snprintf(event, sizeof event,
                 OPENAI_CHUNK "],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
                 asked.tokens, asked.tokens + 12);
        chunk(event);
    }
    chunk("data: [DONE]\n\n");
}

static void say_anthropic(int number, const char *text) {
    char event[512];
    if (number == 0) {
        chunk("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_01Bc4rXJ2mPq\",\"type\":"
              "\"message\",\"role\":\"assistant\",\"model\":\"bench\",\"content\":[],\"stop_reason\":null,"
              "\"stop_sequence\":null,\"usage\":{\"input_tokens\":12,\"output_tokens\":1}}}\n\n");
        chunk("event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
              "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
        chunk("event: ping\ndata: {\"type\":\"ping\"}\n\n");
    }
    if (number < asked.tokens) {
        snprintf(event, sizeof event,
                 "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
                 "\"delta\":{\"type\":\"text_delta\",\"text\":\"%s\"}}\n\n",
                 text);
        return chunk(event);
    }
    chunk("event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n");
    snprintf(event, sizeof event,
             "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\","
             "\"stop_sequence\":null},\"usage\":{\"output_tokens\":%d}}\n\n",
             asked.tokens);
    chunk(event);
    chunk("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

/* Gemini has no event for the end: it is told with the last text. Tokens are counted up to each event. */
static void say_gemini(int number, const char *text) {
    char event[512];
    bool is_over = number == asked.tokens;
    snprintf(event, sizeof event,
             "data: {\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"%s\"}],\"role\": \"model\"}%s,\"index\": 0}],"
             "\"usageMetadata\": {\"promptTokenCount\": 12,\"candidatesTokenCount\": %d,\"totalTokenCount\": %d},"
             "\"modelVersion\": \"bench\",\"responseId\": \"Bc4rXJ2mPq\"}\r\n\r\n",
             text, is_over ? ",\"finishReason\": \"STOP\"" : "", number + !is_over, number + !is_over + 12);
    chunk(event);
}

/* Adds a token to scratch, or the end of the stream as the token after the last one. */
static void say_token(const Caller *caller, int number) {
    char text[48] = "";
    if (number < asked.tokens) snprintf(text, sizeof text, "%d@%lld;", number, (long long)now());
    if (caller->dialect == OPENAI) say_openai(caller, number, text);
    if (caller->dialect == ANTHROPIC) say_anthropic(number, text);
    if (caller->dialect == GEMINI) say_gemini(number, text);
    if (number == asked.tokens) say("0\r\n\r\n");
}

static void say_token_or_fault(const Caller *caller, int number) {
    bool is_swapped = asked.fault == SWAPPED && (number == FAULTY_TOKEN || number == FAULTY_TOKEN + 1);
    if (is_swapped) number = 2 * FAULTY_TOKEN + 1 - number;
    if (asked.fault == LOST && number == FAULTY_TOKEN) return;
    say_token(caller, number);
    if (asked.fault == DOUBLED && number == FAULTY_TOKEN) say_token(caller, number);
}

/* When the token behind one that was due then is told: with a step all streams' tokens are, as an engine makes them. */
static int64_t next_due(int64_t due) {
    due += asked.interval;
    int64_t over = asked.step && asked.interval ? due % asked.step : 0;
    return over ? due - over + asked.step : due;
}

/* Tells the next token of a stream, in a write of its own; the last one has the end with it, as it has with providers. */
static void go_on(Caller *caller) {
    int64_t due = next_due(caller->waiting.due);
    leave(&caller->waiting);
    if (asked.fault == CUT && caller->next == FAULTY_TOKEN) return hang_up(caller);
    if (asked.fault == ENDED && caller->next == FAULTY_TOKEN) { /* as if it were all: nothing but the end is missing */
        caller->is_answering = false;
        say("0\r\n\r\n");
        return send_scratch(caller);
    }
    say_token_or_fault(caller, caller->next++);
    if (caller->next == asked.tokens) say_token(caller, caller->next++);
    caller->is_answering = caller->next < asked.tokens;
    if (scratch.length) send_scratch(caller);
    if (caller->is_answering) join(&later, &caller->waiting, due);
}

static void say_whole(const Caller *caller) {
    static Buffer text, body; /* kept for their memory */
    char piece[512];
    text.length = body.length = 0;
    for (int number = 0; number < asked.tokens; number++) {
        int length = snprintf(piece, sizeof piece, "%d@%lld;", number, (long long)now());
        append(&text, piece, (size_t)length);
    }
    append(&text, "", 1);
    const char *before = "{\"id\":\"chatcmpl-Bc4rXJ2mPq\",\"object\":\"chat.completion\",\"created\":1735689600,\"model\":"
                         "\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"";
    const char *after = "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,"
                        "\"completion_tokens\":%d,\"total_tokens\":%d}}";
    if (caller->dialect == ANTHROPIC) {
        before = "{\"id\":\"msg_01Bc4rXJ2mPq\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\",\"content\":"
                 "[{\"type\":\"text\",\"text\":\"";
        after = "\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":12,"
                "\"output_tokens\":%d}}";
    } else if (caller->dialect == GEMINI) {
        before = "{\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"";
        after = "\"}],\"role\": \"model\"},\"finishReason\": \"STOP\",\"index\": 0}],\"usageMetadata\": "
                "{\"promptTokenCount\": 12,\"candidatesTokenCount\": %d,\"totalTokenCount\": %d},"
                "\"modelVersion\": \"bench\"}";
    }
    append(&body, before, strlen(before));
    append(&body, text.bytes, text.length - 1);
    int length = snprintf(piece, sizeof piece, after, asked.tokens, asked.tokens + 12);
    append(&body, piece, (size_t)length);
    snprintf(piece, sizeof piece, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
             body.length);
    say(piece);
    append(&scratch, body.bytes, body.length);
}

/* Returns how long the request at the beginning of the buffer is, 0 while it is not whole. */
static size_t request_length(const Buffer *in, size_t *head_length) {
    const char *end = memmem(in->bytes, in->length, "\r\n\r\n", 4);
    if (!end) return 0;
    *head_length = (size_t)(end - in->bytes) + 4;
    size_t body_length = 0;
    for (const char *line = in->bytes; line < end; line++) {
        line = memchr(line, '\n', (size_t)(end - line));
        if (!line) break;
        if (!strncasecmp(line + 1, "content-length:", 15)) body_length = strtoul(line + 16, NULL, 10);
        if (!strncasecmp(line + 1, "transfer-encoding:", 18)) {
            const char *last = memmem(end + 2, in->length - *head_length + 2, "\r\n0\r\n\r\n", 7);
            return last ? (size_t)(last - in->bytes) + 7 : 0;
        }
    }
    size_t length = *head_length + body_length;
    return length <= in->length ? length : 0;
}

static void answer(Caller *caller, size_t head_length, size_t length) {
    const char *head = caller->in.bytes, *body = head + head_length;
    size_t line = (size_t)((const char *)memchr(head, '\n', head_length) - head), rest = length - head_length;
    bool has_stream = memmem(body, rest, "\"stream\":true", 13) || memmem(body, rest, "\"stream\": true", 14);
    caller->dialect = memmem(head, line, "enerateContent", 14) ? GEMINI
                      : memmem(head, line, "/messages", 9)     ? ANTHROPIC
                                                               : OPENAI;
    bool is_stream = caller->dialect == GEMINI ? memmem(head, line, ":stream", 7) != NULL : has_stream;
    caller->wants_usage = memmem(body, rest, "\"include_usage\"", 15) != NULL;
    drop(&caller->in, length);
    if (asked.fault == STATUS) {
        say("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}");
    } else if (is_stream) {
        say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
            "transfer-encoding: chunked\r\n\r\n");
        caller->is_answering = true;
        caller->next = 0;
        join(&first, &caller->waiting, now() + asked.ttft);
    } else {
        say_whole(caller);
    }
    send_scratch(caller);
}

/* Returns false when the caller has gone. */
static bool listen_to(Caller *caller) {
    static char bytes[262144];
    ssize_t length = recv(caller->fd, bytes, sizeof bytes, 0);
    if (length < 0 && would_block()) return true;
    if (length <= 0) {
        hang_up(caller);
        return false;
    }
    append(&caller->in, bytes, (size_t)length);
    size_t head_length, whole;
    while (!caller->is_answering && caller->in.length && (whole = request_length(&caller->in, &head_length)))
        answer(caller, head_length, whole);
    return true;
}

static void welcome(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        no_delay(fd);
        Caller *caller = calloc(1, sizeof *caller);
        if (!caller) fail("memory");
        caller->fd = fd;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, caller);
    }
}

void upstream(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)asked.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) fail("cannot listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    poller_init();
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    queue_init(&first);
    queue_init(&later);
    for (struct epoll_event events[EVENTS];;) {
        int count = poll_until(events, earliest(&first, earliest(&later, now() + SECOND)));
        for (int index = 0; index < count; index++) {
            void *what = events[index].data.ptr;
            if (what == &listener) welcome(listener);
            if (what == &listener || what == &alarm_fd) continue;
            if ((events[index].events & ~(uint32_t)EPOLLOUT) && !listen_to(what)) continue;
            if ((events[index].events & EPOLLOUT) && ((Caller *)what)->out.length) send_rest(what);
        }
        int64_t at = now();
        Waiting *one;
        while ((one = first_due(&first, at)) || (one = first_due(&later, at))) go_on((Caller *)one);
    }
}
