// The step that runs on the GPU, as every piece of device code finds it. The same as in step_word.rs: 64 bits, written at once.
struct StepWord {
    // Tokens of the batch without padding: rows from here on are padding. 0 = no work for requests (warm-up, capture,
    // dummy batches): nothing is to be counted.
    unsigned valid_tokens;
    // Row of the ring that stamps go to, plus 1; 0 = this step is not stamped.
    unsigned stamp_row;
};
