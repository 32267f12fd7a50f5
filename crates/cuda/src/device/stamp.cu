// One thread: writes the GPU's clock, nanoseconds, to a slot of the step that runs.
//
// Slots come in pairs, the beginning and the end of something. A beginning reads the clock as late as it can and an end as
// early as it can, so that what the stamps themselves take stays outside.
//
// %globaltimer is nanoseconds since 1970 by the GPU's own count (PTX ISA, "Special Registers"); 32 ns apart on an H100.
#include "step_word.cuh"

static __device__ __forceinline__ unsigned long long clock_ns() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now) : : "memory");
    return now;
}

extern "C" __global__ void profilemate_stamp(const StepWord* word, unsigned long long* ring, unsigned slots,
                                             unsigned slot) {
    unsigned long long now = clock_ns();
    unsigned row = word->stamp_row;
    if (row == 0) {
        return;
    }
    if (slot % 2 == 0) {
        now = clock_ns();
    }
    ring[(unsigned long long)(row - 1) * slots + slot] = now;
}

// One thread: writes the GPU's clock where the host looks.
extern "C" __global__ void profilemate_read_clock(unsigned long long* out) {
    *out = clock_ns();
}
