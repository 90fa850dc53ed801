/* stream(sums, data): the exclusive or of the 64-bit words of each 1 MiB part of data, one int64 a part. What it takes
 * to read memory and nothing else: the bandwidth that others are measured by, so it must not be slow.
 *
 * A part is read as four streams side by side, each with prefetches: that fills more of the memory's banks and of the
 * core's line buffers than one stream does. Words of 16 bytes, which gcc keeps in registers on every ISA. */
#include "kernel.h"

enum { PART = 1 << 20, STREAMS = 4, LINE = 64, PREFETCH = 2048 };

typedef uint64_t pair __attribute__((vector_size(16)));

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return op->arg[0].cols;
}

static uint64_t part_sum(const char *from) {
    pair sum[4] = {{0}};
    for (int32_t i = 0; i < PART / STREAMS; i += LINE) {
#pragma GCC unroll 4
        for (int32_t s = 0; s < STREAMS; s++) {
            const char *line = from + s * (PART / STREAMS) + i;
            pair words[4];
            memcpy(words, line, LINE);
            __builtin_prefetch(line + PREFETCH);
            for (int32_t w = 0; w < 4; w++) sum[w] ^= words[w];
        }
    }
    const pair all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    return all[0] ^ all[1];
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const char *data = lt_row(op, step, 1, 0);
    int64_t *sums = lt_row(op, step, 0, 0);
    for (int32_t part = begin; part < end; part++) sums[part] = (int64_t)part_sum(data + (int64_t)part * PART);
}

LT_KERNEL(stream, units, run);
