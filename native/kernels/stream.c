/* stream(sums, data): the exclusive or of the 64-bit words of each 1 MiB part of data, one int64 a part. What it takes to read memory and nothing else: the bandwidth that others are measured by. */
#include "kernel.h"

enum { PART = 1 << 20, PREFETCH = 2048 };

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return op->arg[0].cols;
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const char *data = lt_row(op, step, 1, 0);
    int64_t *sums = lt_row(op, step, 0, 0);
    for (int32_t part = begin; part < end; part++) {
        const char *from = data + (int64_t)part * PART;
        uint64_t lanes[32] = {0};
        for (int32_t i = 0; i < PART; i += (int32_t)sizeof lanes) {
            for (int32_t line = 0; line < (int32_t)sizeof lanes; line += 64)
                __builtin_prefetch(from + i + line + PREFETCH);
            uint64_t words[32];
            memcpy(words, from + i, sizeof words);
            for (int32_t l = 0; l < 32; l++) lanes[l] ^= words[l];
        }
        uint64_t sum = 0;
        for (int32_t l = 0; l < 32; l++) sum ^= lanes[l];
        sums[part] = (int64_t)sum;
    }
}

LT_KERNEL(stream, units, run);
