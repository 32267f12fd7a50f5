/* A CUDA driver that is none, for machines without a GPU: the functions that crates/cuda calls, on a clock that a test
 * moves. Built by the tests as libcuda.so.1.
 *
 * A stream is a number of nanoseconds: when its last kernel ends. A test launches kernels (fake_launch) and lets time
 * pass (fake_advance); an event is passed once the clock is behind what was launched before it. Any function can be told
 * to fail (fake_fail). Every call is counted (fake_calls): a call that waits does not even exist here.
 *
 * The thread that loads it, or resets it, is the host's: it alone has a current context, as on a real driver, and its calls
 * are counted by themselves, too (fake_host_calls). As on a real driver (580.159.04, H200), asking for an event needs no
 * current context, and breaks a capture unless the asking thread's capture mode is relaxed. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint64_t at; int recorded; uintptr_t context; } event_t;

enum { STREAMS = 8, KINDS = 9 };
static uint64_t now, busy_until[STREAMS], calls[KINDS], host_calls[KINDS], live_events, all_events, broken_captures;
static int capturing[STREAMS], fail_code[KINDS];
static long fail_after[KINDS], fail_count[KINDS];
static uintptr_t context = 1;
static pthread_t host;
static _Thread_local int capture_mode;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void unlock(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }
/* Until the end of the function. */
#define LOCKED pthread_mutex_t *held __attribute__((cleanup(unlock))) = (pthread_mutex_lock(&lock), &lock)

enum kind { CONTEXT, CREATE, DESTROY, RECORD, QUERY, ELAPSED, CAPTURING, MODE, VERSION };
static const char *const names[KINDS] = {"context", "create", "destroy", "record", "query", "elapsed", "capturing", "mode", "version"};

static int kind_of(const char *name) {
    for (int i = 0; i < KINDS; i++) if (!strcmp(names[i], name)) return i;
    abort();
}
static int is_host(void) { return pthread_equal(host, pthread_self()); }
static int is_any_capturing(void) {
    for (int i = 0; i < STREAMS; i++) if (capturing[i]) return 1;
    return 0;
}
static int called(enum kind kind) {
    calls[kind]++;
    host_calls[kind] += (uint64_t)is_host();
    if (!fail_code[kind] || fail_after[kind]-- > 0 || fail_count[kind] == 0) return 0;
    fail_count[kind]--;
    return fail_code[kind];
}

/* For tests. */
__attribute__((constructor)) static void loaded(void) { host = pthread_self(); }
void fake_reset(void) {
    LOCKED;
    now = live_events = all_events = broken_captures = 0;
    context = 1;
    host = pthread_self();
    memset(host_calls, 0, sizeof host_calls);
    memset(busy_until, 0, sizeof busy_until); memset(calls, 0, sizeof calls);
    memset(capturing, 0, sizeof capturing); memset(fail_code, 0, sizeof fail_code);
}
void fake_advance(uint64_t ns) { LOCKED; now += ns; }
uint64_t fake_now(void) { LOCKED; return now; }
void fake_launch(uintptr_t stream, uint64_t ns) {
    LOCKED;
    if (busy_until[stream] < now) busy_until[stream] = now;
    busy_until[stream] += ns;
}
void fake_capture(uintptr_t stream, int on) { LOCKED; capturing[stream] = on; }
void fake_context(uintptr_t id) { LOCKED; context = id; }
void fake_fail(const char *name, int code, long after, long count) {
    LOCKED;
    int kind = kind_of(name);
    fail_code[kind] = code; fail_after[kind] = after; fail_count[kind] = count;
}
uint64_t fake_calls(const char *name) { LOCKED; return calls[kind_of(name)]; }
uint64_t fake_host_calls(const char *name) { LOCKED; return host_calls[kind_of(name)]; }
uint64_t fake_broken_captures(void) { LOCKED; return broken_captures; }
uint64_t fake_live_events(void) { LOCKED; return live_events; }
uint64_t fake_all_events(void) { LOCKED; return all_events; }

/* The driver. */
int cuCtxGetCurrent(void **out) {
    LOCKED;
    int e = called(CONTEXT);
    *out = is_host() ? (void *)context : NULL;
    return e;
}
int cuDriverGetVersion(int *out) { LOCKED; *out = 13000; return called(VERSION); }
int cuEventCreate(void **out, unsigned flags) {
    LOCKED;
    int e = called(CREATE);
    if (e) return e;
    if (!is_host()) return 201;                         /* CUDA_ERROR_INVALID_CONTEXT */
    if (flags != 0) return 1;
    event_t *event = calloc(1, sizeof *event);
    event->context = context;
    *out = event; live_events++; all_events++;
    return 0;
}
int cuEventDestroy_v2(void *event) { LOCKED; int e = called(DESTROY); if (e) return e; free(event); live_events--; return 0; }
int cuEventRecord(void *event, void *stream) {
    LOCKED;
    int e = called(RECORD);
    if (e) return e;
    if (!is_host()) return 201;
    event_t *it = event;
    if (it->context != context) return 400;             /* CUDA_ERROR_INVALID_HANDLE */
    if (capturing[(uintptr_t)stream]) return 900;       /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: the host's capture breaks */
    it->at = busy_until[(uintptr_t)stream] < now ? now : busy_until[(uintptr_t)stream];
    it->recorded = 1;
    return 0;
}
int cuEventQuery(void *event) {
    LOCKED;
    int e = called(QUERY);
    if (e) return e;
    if (is_any_capturing() && capture_mode != 2) {      /* CU_STREAM_CAPTURE_MODE_RELAXED */
        broken_captures++;
        return 900;
    }
    event_t *it = event;
    if (it->context != context) return 400;             /* of a context that is gone: nobody may ask for it */
    if (!it->recorded) return 0;
    return it->at <= now ? 0 : 600;                     /* CUDA_ERROR_NOT_READY */
}
int cuEventElapsedTime(float *ms, void *from, void *to) {
    LOCKED;
    int e = called(ELAPSED);
    if (e) return e;
    event_t *a = from, *b = to;
    if (!a->recorded || !b->recorded || a->context != context || b->context != context) return 400;
    if (a->at > now || b->at > now) return 600;
    *ms = (float)(((double)b->at - (double)a->at) / 1e6);
    return 0;
}
int cuStreamIsCapturing(void *stream, int *status) {
    LOCKED;
    int e = called(CAPTURING);
    *status = capturing[(uintptr_t)stream];
    return e;
}
int cuThreadExchangeStreamCaptureMode(int *mode) {
    LOCKED;
    int e = called(MODE), before = capture_mode;
    if (e) return e;
    capture_mode = *mode;
    *mode = before;
    return 0;
}
