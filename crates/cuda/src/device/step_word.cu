// One thread: sets the step word, in the order of the stream. What was launched before it sees the old one.
// For drivers and devices that cannot write a word of 64 bits by themselves (cuStreamWriteValue64).
#include "step_word.cuh"

extern "C" __global__ void profilemate_set_step_word(StepWord* word, unsigned valid_tokens, unsigned stamp_row) {
    word->valid_tokens = valid_tokens;
    word->stamp_row = stamp_row;
}
