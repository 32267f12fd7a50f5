/* A CUDA driver that is none, for machines without a GPU: the functions that crates/cuda calls, on a clock that a test
 * moves. Built by the tests as libcuda.so.1.
 *
 * A stream is a number of nanoseconds: when its last kernel ends. A test launches kernels (fake_launch) and lets time
 * pass (fake_advance); an event is passed once the clock is behind what was launched before it. Any function can be told
 * to fail (fake_fail). Every call is counted (fake_calls): a call that waits does not even exist here. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint64_t at; int recorded; uintptr_t context; } event_t;

enum { STREAMS = 8, KINDS = 8 };
static uint64_t now, busy_until[STREAMS], calls[KINDS], live_events, all_events;
static int capturing[STREAMS], fail_code[KINDS];
static long fail_after[KINDS], fail_count[KINDS];
static uintptr_t context = 1;

enum kind { CONTEXT, CREATE, DESTROY, RECORD, QUERY, ELAPSED, CAPTURING, VERSION };
static const char *const names[KINDS] = {"context", "create", "destroy", "record", "query", "elapsed", "capturing", "version"};

static int kind_of(const char *name) {
    for (int i = 0; i < KINDS; i++) if (!strcmp(names[i], name)) return i;
    abort();
}
static int called(enum kind kind) {
    calls[kind]++;
    if (!fail_code[kind] || fail_after[kind]-- > 0 || fail_count[kind] == 0) return 0;
    fail_count[kind]--;
    return fail_code[kind];
}

/* For tests. */
void fake_reset(void) {
    now = live_events = all_events = 0;
    context = 1;
    memset(busy_until, 0, sizeof busy_until); memset(calls, 0, sizeof calls);
    memset(capturing, 0, sizeof capturing); memset(fail_code, 0, sizeof fail_code);
}
void fake_advance(uint64_t ns) { now += ns; }
uint64_t fake_now(void) { return now; }
void fake_launch(uintptr_t stream, uint64_t ns) {
    if (busy_until[stream] < now) busy_until[stream] = now;
    busy_until[stream] += ns;
}
void fake_capture(uintptr_t stream, int on) { capturing[stream] = on; }
void fake_context(uintptr_t id) { context = id; }
void fake_fail(const char *name, int code, long after, long count) {
    int kind = kind_of(name);
    fail_code[kind] = code; fail_after[kind] = after; fail_count[kind] = count;
}
uint64_t fake_calls(const char *name) { return calls[kind_of(name)]; }
uint64_t fake_live_events(void) { return live_events; }
uint64_t fake_all_events(void) { return all_events; }

/* The driver. */
int cuCtxGetCurrent(void **out) { int e = called(CONTEXT); *out = (void *)context; return e; }
int cuDriverGetVersion(int *out) { *out = 13000; return called(VERSION); }
int cuEventCreate(void **out, unsigned flags) {
    int e = called(CREATE);
    if (e) return e;
    if (flags != 0) return 1;
    event_t *event = calloc(1, sizeof *event);
    event->context = context;
    *out = event; live_events++; all_events++;
    return 0;
}
int cuEventDestroy_v2(void *event) { int e = called(DESTROY); if (e) return e; free(event); live_events--; return 0; }
int cuEventRecord(void *event, void *stream) {
    int e = called(RECORD);
    if (e) return e;
    event_t *it = event;
    if (it->context != context) return 400;             /* CUDA_ERROR_INVALID_HANDLE */
    if (capturing[(uintptr_t)stream]) return 900;       /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: the host's capture breaks */
    it->at = busy_until[(uintptr_t)stream] < now ? now : busy_until[(uintptr_t)stream];
    it->recorded = 1;
    return 0;
}
int cuEventQuery(void *event) {
    int e = called(QUERY);
    if (e) return e;
    event_t *it = event;
    if (!it->recorded) return 0;
    return it->at <= now ? 0 : 600;                     /* CUDA_ERROR_NOT_READY */
}
int cuEventElapsedTime(float *ms, void *from, void *to) {
    int e = called(ELAPSED);
    if (e) return e;
    event_t *a = from, *b = to;
    if (!a->recorded || !b->recorded) return 400;
    if (a->at > now || b->at > now) return 600;
    *ms = (float)(((double)b->at - (double)a->at) / 1e6);
    return 0;
}
int cuStreamIsCapturing(void *stream, int *status) {
    int e = called(CAPTURING);
    *status = capturing[(uintptr_t)stream];
    return e;
}
