/* embed(y, ids, data, scale, table, digits; group): rows of codes of a codebook, 4 bits each: int8/codebook.h says what
 * they mean. Include after defining, for NESTED ones, these columns of a group and LOAD_SCALE as there. */
#include "f32x16.h"
#include "kernel.h"

#ifndef NESTED
#define NESTED 0
#endif

enum { COLUMNS = NESTED ? NESTED : 32, BYTES = COLUMNS * 8, ROWS = 16 };

/* What codes stand for, and which is the group's own value, or -1. */
static int32_t values_of(const lt_op *op, const lt_step *step, int32_t grids, float values[16]) {
    const uint8_t *table = lt_row(op, step, NESTED ? 5 : 4, 0);
    const int32_t planes = op->arg[NESTED ? 5 : 4].cols / 16, known = planes - (grids == 2);
    int32_t own = -1;
    for (int32_t i = 0; i < 16; i++) {
        double value = 0;
#if NESTED
        for (int32_t p = 0; p < planes; p++) value = 128 * value + table[p * 16 + i] - (p ? 0 : 64);
#else
        const float *digits = lt_row(op, step, 5, 0);
        for (int32_t p = 0; p < known; p++)
            value += ((double)table[p * 16 + i] - (double)digits[2 * p + 1]) * (double)digits[2 * p];
#endif
        values[i] = (float)value;
        if (known < planes && table[known * 16 + i]) own = i;
    }
    return own;
}

static inline void embed_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t cols = op->arg[0].cols, chunks = op->arg[2].cols / BYTES, group = NESTED ? 1 : op->dim[0] / COLUMNS;
    const int32_t groups = lt_ceil_div(chunks, group), grids = NESTED ? 1 : op->arg[3].cols / (groups * ROWS);
    float values[16], scale[ROWS], chosen[ROWS] = {0};
    const int32_t own = values_of(op, step, grids, values);
#if NESTED
    const int32_t supers = op->arg[4].cols / ROWS;
    int32_t shift = 0; /* a super-block has 2^shift chunks */
    while (supers << shift < chunks) shift++;
#endif
    for (int32_t token = begin; token < end; token++) {
        const int32_t id = *(const int32_t *)lt_row(op, step, 1, token), block = id / ROWS, row = id % ROWS;
        const uint8_t *chunk = (const uint8_t *)lt_row(op, step, 2, 0) + (int64_t)block * chunks * BYTES;
        float *y = lt_row(op, step, 0, token);
        for (int32_t c = 0; c < chunks; c++, chunk += BYTES) {
            const int64_t at = ((int64_t)block * groups + c / group) * grids * ROWS;
#if NESTED
            const float *unit = (const float *)lt_row(op, step, 4, 0) + ((int64_t)block * supers + (c >> shift)) * ROWS;
            vstore(scale, vmul(vload(unit), LOAD_SCALE((const uint8_t *)lt_row(op, step, 3, 0) + at)));
#else
            const uint16_t *half = (const uint16_t *)lt_row(op, step, 3, 0) + at;
            vstore(scale, vload_f16(half));
            if (grids == 2) vstore(chosen, vload_f16(half + ROWS));
#endif
            for (int32_t i = c * COLUMNS, k = 0; k < COLUMNS && i < cols; i++, k++) {
                const int32_t code = chunk[k / 8 * 64 + row * 4 + k % 4] >> (k / 4 % 2 * 4) & 15;
                y[i] = (code == own ? chosen[row] : values[code]) * scale[row];
            }
        }
    }
}
