/* A CUDA driver that is none, for machines without a GPU: the functions that crates/cuda calls, on a clock that a test
 * moves. Built by the tests as libcuda.so.1.
 *
 * A stream is a number of nanoseconds: when its last kernel ends. A test launches kernels (fake_launch) and lets time
 * pass (fake_advance); an event is passed once the clock is behind what was launched before it. Any function can be told
 * to fail (fake_fail). Every call is counted (fake_calls): a call that waits does not even exist here.
 *
 * Memory on the GPU is memory here. Kernels of crates/cuda/src/device are known by their names, take no time and do their
 * work when they are launched, with the time at which a GPU would (fake_gpu_clock: how far ahead its clock is, and how much
 * faster it runs). On a stream that is being captured they go into a graph instead (fake_replay runs it). With OLD_DRIVER
 * defined there is nothing for device code.
 *
 * The thread that loads it, or resets it, is the host's: it alone has a current context, as on a real driver, and its calls
 * are counted by themselves, too (fake_host_calls). As on a real driver (580.159.04, H200), asking for an event needs no
 * current context, and breaks a capture unless the asking thread's capture mode is relaxed. */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* `captured`: the stream whose capture it was recorded in, plus 1; `on`: the stream it was recorded on. */
typedef struct { uint64_t at; int recorded; uintptr_t context, captured, on; unsigned flags; } event_t;

enum { STREAMS = 16, KINDS = 21, NODES = 4096, FUNCTIONS = 64 };
static uint64_t now, busy_until[STREAMS], calls[KINDS], host_calls[KINDS], live_events, all_events, broken_captures;
static int capturing[STREAMS], fail_code[KINDS];
static long fail_after[KINDS], fail_count[KINDS];
static uintptr_t context = 1;
static pthread_t host;
static _Thread_local int capture_mode;
static _Thread_local uintptr_t made_current;
typedef struct { char name[64]; int parameters; unsigned narrow; uint64_t launches; } function_t;
/* What a stream was given while it was captured: a kernel of ours, or one of vLLM's that takes some time. */
typedef struct { function_t *function; uint64_t parameters[8]; uint64_t ns; } node_t;
static node_t graphs[STREAMS][NODES];
static int graph_nodes[STREAMS], next_stream = 8, functions_known;
/* Streams that a capture on another one has taken in: which, plus 1, and whether the other one waits for what is on it. */
static uintptr_t branch_of[STREAMS];
static int joined[STREAMS];
static uint64_t branch_launches;
static function_t functions[FUNCTIONS];
static uint64_t clock_ahead, gpu_bytes, host_bytes;
static double clock_rate = 1.0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void unlock(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }
/* Until the end of the function. */
#define LOCKED pthread_mutex_t *held __attribute__((cleanup(unlock))) = (pthread_mutex_lock(&lock), &lock)

enum kind {
    CONTEXT, CREATE, DESTROY, RECORD, QUERY, ELAPSED, CAPTURING, MODE, VERSION,
    LOAD, FUNCTION, ALLOCATE, ALLOCATE_HOST, HOST_POINTER, ZERO, COPY, KERNEL, STREAM, WAIT, CURRENT, WRITE
};
static const char *const names[KINDS] = {
    "context", "create", "destroy", "record", "query", "elapsed", "capturing", "mode", "version",
    "load", "function", "allocate", "allocate_host", "host_pointer", "zero", "copy", "kernel", "stream", "wait", "current", "write"
};

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
    memset(graph_nodes, 0, sizeof graph_nodes);
    memset(branch_of, 0, sizeof branch_of);
    branch_launches = 0;
    for (int i = 0; i < functions_known; i++) functions[i].launches = 0;
    clock_ahead = gpu_bytes = host_bytes = 0;
    clock_rate = 1.0;
    next_stream = 8;
}
void fake_advance(uint64_t ns) { LOCKED; now += ns; }
uint64_t fake_now(void) { LOCKED; return now; }
static uint64_t begins(uintptr_t stream) {
    if (busy_until[stream] < now) busy_until[stream] = now;
    return busy_until[stream];
}
/* Rows that count, as count_experts.cu has them. */
static uint64_t rows_end(const uint64_t *word, uint64_t rows, uint64_t first_row, uint64_t first_token) {
    uint64_t valid = word[0] & 0xffffffff, count = valid > first_token ? valid - first_token : 0;
    if (first_row >= rows) return first_row;
    return first_row + (count < rows - first_row ? count : rows - first_row);
}
static int64_t id_at(uint64_t data, uint64_t at, unsigned bytes) {
    return bytes == 8 ? ((int64_t *)data)[at] : bytes == 4 ? ((int32_t *)data)[at] : ((int16_t *)data)[at];
}
static void count_experts(const uint64_t *p) {
    uint64_t *counters = (uint64_t *)p[1], columns = p[4] & 0xffff, pairs = p[4] >> 24 & 1;
    int64_t experts = (int64_t)p[5];
    unsigned bytes = p[4] >> 16 & 0xff;
    uint64_t end = rows_end((uint64_t *)p[0], p[3], p[6], p[7]);
    for (uint64_t row = p[6]; row < end; row++) {
        counters[0]++;
        for (uint64_t a = 0; a < columns; a++) {
            int64_t one = id_at(p[2], row * columns + a, bytes);
            if (one < 0 || one >= experts) continue;
            counters[1 + one]++;
            for (uint64_t b = 0; pairs && b < a; b++) {
                int64_t other = id_at(p[2], row * columns + b, bytes);
                if (other < 0 || other >= experts || other == one) continue;
                int64_t low = one < other ? one : other, high = one < other ? other : one;
                counters[1 + experts + low * (2 * experts - low - 1) / 2 + high - low - 1]++;
            }
        }
    }
}
static void count_weights(const uint64_t *p) {
    uint64_t columns = p[4] & 0xffff, end = rows_end((uint64_t *)p[0], p[3], p[5], p[6]);
    if (p[4] >> 16 != 0) abort(); /* 32-bit floating point is enough here */
    for (uint64_t at = p[5] * columns; at < end * columns; at++) {
        float weight = ((float *)p[2])[at] * 100.0f;
        if (weight >= 0) ((uint64_t *)p[1])[weight < 100 ? (int)weight : 100]++;
    }
}
static void run_kernel(const function_t *function, const uint64_t *p, uint64_t at) {
    uint64_t clock = clock_ahead + (uint64_t)((double)at * clock_rate);
    if (!strcmp(function->name, "profilemate_set_step_word")) {
        uint64_t *word = (uint64_t *)p[0];
        word[0] = p[1] | p[2] << 32;
    } else if (!strcmp(function->name, "profilemate_stamp")) {
        uint64_t row = ((uint64_t *)p[0])[0] >> 32;
        if (row != 0) ((uint64_t *)p[1])[(row - 1) * p[2] + p[3]] = clock;
    } else if (!strcmp(function->name, "profilemate_read_clock")) {
        *(uint64_t *)p[0] = clock;
    } else if (!strcmp(function->name, "profilemate_count_experts")) {
        count_experts(p);
    } else if (!strcmp(function->name, "profilemate_count_weights")) {
        count_weights(p);
    }
}
static void put_on(uintptr_t stream, node_t node) {
    if (branch_of[stream]) {
        joined[stream] = 0;
        branch_launches++;
        stream = branch_of[stream] - 1;
    }
    if (capturing[stream]) {
        if (graph_nodes[stream] == NODES) abort();
        graphs[stream][graph_nodes[stream]++] = node;
    } else if (node.function) {
        node.function->launches++;
        run_kernel(node.function, node.parameters, begins(stream));
    } else {
        begins(stream);
        busy_until[stream] += node.ns;
    }
}
/* vLLM's kernels. */
void fake_launch(uintptr_t stream, uint64_t ns) { LOCKED; put_on(stream, (node_t){.ns = ns}); }
void fake_capture(uintptr_t stream, int on) {
    LOCKED;
    capturing[stream] = on;
    if (on) graph_nodes[stream] = 0;
    for (int i = 0; i < STREAMS; i++) {
        if (branch_of[i] != stream + 1) continue;
        if (!joined[i]) broken_captures++;              /* CUDA_ERROR_STREAM_CAPTURE_UNJOINED */
        branch_of[i] = 0;
    }
}
/* What was captured last on a stream, on that stream. */
void fake_replay(uintptr_t stream) {
    LOCKED;
    for (int i = 0; i < graph_nodes[stream]; i++) put_on(stream, graphs[stream][i]);
}
/* The GPU's clock: nanoseconds ahead of fake_now, and how many go by for each billion of those. */
void fake_gpu_clock(uint64_t ahead, uint64_t rate) { LOCKED; clock_ahead = ahead; clock_rate = (double)rate / 1e9; }
/* How often a kernel has run outside of graphs and in them. */
uint64_t fake_launches(const char *name) {
    LOCKED;
    for (int i = 0; i < functions_known; i++) if (!strcmp(functions[i].name, name)) return functions[i].launches;
    return 0;
}
/* Kernels that were captured on a branch of the capture. */
uint64_t fake_branch_launches(void) { LOCKED; return branch_launches; }
uint64_t fake_gpu_bytes(void) { LOCKED; return gpu_bytes; }
uint64_t fake_host_bytes(void) { LOCKED; return host_bytes; }
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
    *out = is_host() ? (void *)context : (void *)made_current;
    return e;
}
int cuDriverGetVersion(int *out) { LOCKED; *out = 13000; return called(VERSION); }
int cuEventCreate(void **out, unsigned flags) {
    LOCKED;
    int e = called(CREATE);
    if (e) return e;
    if (!is_host()) return 201;                         /* CUDA_ERROR_INVALID_CONTEXT */
    if (flags != 0 && flags != 2) return 1;             /* CU_EVENT_DISABLE_TIMING */
    event_t *event = calloc(1, sizeof *event);
    event->context = context;
    event->flags = flags;
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
    uintptr_t on = (uintptr_t)stream, of = branch_of[on] ? branch_of[on] - 1 : on;
    if (capturing[of] && it->flags == 2) {              /* a place in the graph, for others to come behind */
        it->captured = of + 1;
        it->on = on;
        return 0;
    }
    if (capturing[of]) { broken_captures++; return 900; } /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: the host's capture breaks */
    it->captured = 0;
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

#ifndef OLD_DRIVER
static bool has_context(void) { return is_host() ? context != 0 : made_current != 0; }
/* For what may not be done while anybody captures, as on a real driver. */
static int unsafe_call(enum kind kind) {
    int e = called(kind);
    if (e) return e;
    if (is_any_capturing() && capture_mode != 2) {
        broken_captures++;
        return 900;
    }
    return has_context() ? 0 : 201;
}
int cuCtxSetCurrent(void *it) { LOCKED; int e = called(CURRENT); if (!e) made_current = (uintptr_t)it; return e; }
int cuModuleLoadData(void **out, const char *ptx) {
    LOCKED;
    int e = unsafe_call(LOAD);
    if (e) return e;
    for (const char *at = ptx; *at; at++) if (*at & 0x80) return 218; /* nothing but ASCII, in comments either */
    if (!strstr(ptx, ".version") || !strstr(ptx, ".target")) return 218; /* CUDA_ERROR_INVALID_PTX */
    *out = strdup(ptx);
    return 0;
}
int cuModuleGetFunction(void **out, void *module, const char *name) {
    LOCKED;
    int e = unsafe_call(FUNCTION);
    if (e) return e;
    char text[128] = ".visible .entry ";
    strcat(strncat(text, name, 64), "(");
    if (!strstr(module, text)) return 500;              /* CUDA_ERROR_NOT_FOUND */
    /* What it takes stands in the PTX: those of 32 bits are read as such when it is launched. */
    int parameters = 0;
    unsigned narrow = 0;
    for (const char *at = strstr(module, text); *at != ')'; at++) {
        if (strncmp(at, ".param .", 8)) continue;
        narrow |= (unsigned)!strncmp(at + 9, "32", 2) << parameters++;
    }
    for (int i = 0; i < functions_known; i++) {
        if (!strcmp(functions[i].name, name)) { *out = &functions[i]; return 0; }
    }
    if (functions_known == FUNCTIONS || parameters > 8) abort();
    function_t *function = &functions[functions_known++];
    strncpy(function->name, name, sizeof function->name - 1);
    function->parameters = parameters;
    function->narrow = narrow;
    *out = function;
    return 0;
}
int cuMemAlloc_v2(uint64_t *out, size_t bytes) {
    LOCKED;
    int e = unsafe_call(ALLOCATE);
    if (e) return e;
    *out = (uint64_t)malloc(bytes);
    memset((void *)*out, 0xA5, bytes);                  /* memory of a GPU holds anything */
    gpu_bytes += bytes;
    return 0;
}
int cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    LOCKED;
    int e = unsafe_call(ALLOCATE_HOST);
    if (e) return e;
    if (flags != 3) return 1;
    *out = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    host_bytes += bytes;
    return 0;
}
int cuMemHostGetDevicePointer_v2(uint64_t *out, void *here, unsigned flags) {
    LOCKED;
    int e = called(HOST_POINTER);
    if (e || flags) return e ? e : 1;
    *out = (uint64_t)here;
    return 0;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    LOCKED;
    int e = called(ZERO);
    if (e) return e;
    if (capturing[(uintptr_t)stream]) abort();          /* it would go into vLLM's graph */
    memset((void *)to, value, bytes);
    return 0;
}
int cuStreamWriteValue64_v2(void *stream, uint64_t to, uint64_t value, unsigned flags) {
    LOCKED;
    int e = called(WRITE);
    if (e || flags) return e ? e : 1;
    if (!has_context()) return 201;
    if (capturing[(uintptr_t)stream]) abort();
    begins((uintptr_t)stream);
    *(uint64_t *)to = value;
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    LOCKED;
    int e = called(COPY);
    if (e) return e;
    if (capturing[(uintptr_t)stream]) abort();
    memcpy(to, (void *)from, bytes);
    return 0;
}
int cuLaunchKernel(void *it, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    LOCKED;
    int e = called(KERNEL);
    if (e) return e;
    if (!has_context()) return 201;
    if (!gx || !gy || !gz || !bx || !by || !bz || (uint64_t)bx * by * bz > 1024 || shared > 227 * 1024 || extra) return 1;
    function_t *function = it;
    node_t node = {.function = function};
    for (int i = 0; i < function->parameters; i++) {
        node.parameters[i] = function->narrow >> i & 1 ? *(uint32_t *)parameters[i] : *(uint64_t *)parameters[i];
    }
    put_on((uintptr_t)stream, node);
    return 0;
}
int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
    LOCKED;
    int e = unsafe_call(STREAM);
    (void)priority;
    if (e) return e;
    if (flags != 1 || next_stream == STREAMS) return 1;
    *out = (void *)(uintptr_t)next_stream++;
    return 0;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    LOCKED;
    int e = called(WAIT);
    if (e || flags) return e ? e : 1;
    event_t *it = event;
    uintptr_t on = (uintptr_t)stream;
    if (it->captured) {
        uintptr_t of = it->captured - 1;
        if (!capturing[of]) return 401;                 /* of a capture that is over */
        if (on != of) {                                 /* this stream becomes a part of the capture */
            branch_of[on] = of + 1;
            joined[on] = 0;
        } else if (it->on != of) {                      /* the capture comes behind what is on the branch */
            joined[it->on] = 1;
        }
        return 0;
    }
    if (capturing[on]) abort();
    if (busy_until[on] < it->at) busy_until[on] = it->at;
    return 0;
}
#endif
