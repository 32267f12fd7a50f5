// Counts what a router chose: how often each expert, and, if asked for, each pair of experts and each routing weight.
//
// A block counts in its shared memory and adds what it has to the counters once, so that a batch costs few atomic operations on
// global memory. Rows that are no tokens of the step (padding, warm-up, other ranks' tokens) are passed over.
// How the counters of a layer lie: crates/experts/src/counters.rs.
#include "step_word.cuh"

// The rows that count: [first_row, the result).
static __device__ __forceinline__ unsigned end_of(const StepWord* word, unsigned rows, unsigned first_row,
                                                  unsigned first_token) {
    unsigned valid = word->valid_tokens;
    unsigned count = valid > first_token ? valid - first_token : 0;
    return first_row >= rows ? first_row : first_row + min(count, rows - first_row);
}

// An expert's id; what is no expert of the layer is `experts`.
static __device__ __forceinline__ unsigned expert_of(const void* chosen, unsigned at, unsigned bytes, unsigned experts) {
    long long id = bytes == 8   ? ((const long long*)chosen)[at]
                   : bytes == 4 ? (long long)((const int*)chosen)[at]
                                : (long long)((const short*)chosen)[at];
    return id >= 0 && id < experts ? (unsigned)id : experts;
}

// shape: columns (bits 0-15), bytes of an id (16-23), whether pairs are counted (24).
// Shared memory: a word for each expert.
extern "C" __global__ void profilemate_count_experts(const StepWord* word, unsigned long long* counters,
                                                     const void* chosen, unsigned rows, unsigned shape, unsigned experts,
                                                     unsigned first_row, unsigned first_token) {
    unsigned columns = shape & 0xffff, bytes = shape >> 16 & 0xff;
    bool has_pairs = shape >> 24 & 1;
    unsigned end = end_of(word, rows, first_row, first_token);
    if (first_row >= end) {
        return;
    }
    extern __shared__ unsigned histogram[];
    for (unsigned expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        histogram[expert] = 0;
    }
    __syncthreads();
    unsigned long long* pairs = counters + 1 + experts;
    for (unsigned at = first_row * columns + blockIdx.x * blockDim.x + threadIdx.x; at < end * columns;
         at += gridDim.x * blockDim.x) {
        unsigned expert = expert_of(chosen, at, bytes, experts);
        if (expert == experts) {
            continue;
        }
        atomicAdd(&histogram[expert], 1u);
        for (unsigned other_at = at - at % columns; has_pairs && other_at < at; other_at++) {
            unsigned other = expert_of(chosen, other_at, bytes, experts);
            if (other == experts || other == expert) {
                continue;
            }
            // pair_index of crates/format/src/record/experts.rs.
            unsigned long long low = min(expert, other), high = max(expert, other);
            atomicAdd(&pairs[low * (2ull * experts - low - 1) / 2 + high - low - 1], 1ull);
        }
    }
    __syncthreads();
    for (unsigned expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        if (histogram[expert] != 0) {
            atomicAdd(&counters[1 + expert], (unsigned long long)histogram[expert]);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicAdd(&counters[0], (unsigned long long)(end - first_row));
    }
}

// Bins of a hundredth from 0 on; the last has what is 1 or more (WEIGHT_BINS in crates/format/src/record/experts.rs).
#define BINS 101

// kind: 0 = 32-bit floating point, 1 = bfloat16, 2 = 16-bit.
static __device__ __forceinline__ float weight_of(const void* weights, unsigned at, unsigned kind) {
    if (kind == 0) {
        return ((const float*)weights)[at];
    }
    unsigned short bits = ((const unsigned short*)weights)[at];
    float weight;
    if (kind == 1) {
        weight = __uint_as_float((unsigned)bits << 16);
    } else {
        asm("cvt.f32.f16 %0, %1;" : "=f"(weight) : "h"(bits));
    }
    return weight;
}

// shape: columns (bits 0-15), kind (16-23).
extern "C" __global__ void profilemate_count_weights(const StepWord* word, unsigned long long* bins, const void* weights,
                                                     unsigned rows, unsigned shape, unsigned first_row,
                                                     unsigned first_token) {
    unsigned columns = shape & 0xffff, kind = shape >> 16 & 0xff;
    unsigned end = end_of(word, rows, first_row, first_token);
    if (first_row >= end) {
        return;
    }
    __shared__ unsigned histogram[BINS];
    for (unsigned bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        histogram[bin] = 0;
    }
    __syncthreads();
    for (unsigned at = first_row * columns + blockIdx.x * blockDim.x + threadIdx.x; at < end * columns;
         at += gridDim.x * blockDim.x) {
        float weight = weight_of(weights, at, kind);
        // False for what is no number.
        if (weight >= 0.0f) {
            atomicAdd(&histogram[min((unsigned)(weight * (BINS - 1)), BINS - 1u)], 1u);
        }
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        if (histogram[bin] != 0) {
            atomicAdd(&bins[bin], (unsigned long long)histogram[bin]);
        }
    }
}
