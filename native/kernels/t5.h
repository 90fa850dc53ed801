/* t5: ternary weights at 1.6 bits, five to a byte; runtime/formats/t5.py says how they lie.
 *
 * A byte u holds a number f = u - 128, a fraction of 256 in balanced ternary: 3 f = 256 t + f', where t is its first
 * digit, -1, 0 or 1, and f' = 3 f wrapped to a byte holds the digits that remain. So nothing needs to be looked up:
 * a dot product with the digits is one with the bytes themselves,
 *
 *     256 sum(a t) = 3 sum(a f) - sum(a f')
 *
 * in integers that may wrap, because the result, sum(a t), is below 2^23 while K <= 65536. Where
 * a byte product is slow, the digit is (f > 42) - (f < -42) instead.
 *
 * linear_t5(y, codes, scale, sum, data, row_scale): y = (codes . t) * (scale * row_scale), codes as quantize makes
 * them. Codes beyond the matrix's columns are 0. */
#pragma once
#include "kernel.h"

enum {
    T5_ROWS = 16,          /* output rows in a block */
    T5_BYTES = 4,          /* bytes of a row in a vector: a 32-bit lane */
    T5_DIGITS = 5,         /* weights in a byte */
    T5_GROUP = 20,         /* weights of a row in a vector */
    T5_VECTOR = 64,        /* bytes */
    T5_BLOCKS_PER_PART = 2 /* blocks that one thread takes at a time */
};

typedef struct {
    const uint8_t *data; /* [blocks][groups][16 rows][4 bytes] */
    const float *row_scale;
    int32_t groups, rows;
} t5_matrix;

static inline t5_matrix t5_open(const lt_op *op, const lt_step *step) {
    return (t5_matrix){lt_row(op, step, 4, 0), lt_row(op, step, 5, 0), op->arg[4].cols / T5_VECTOR, op->arg[0].cols};
}

static inline int32_t t5_blocks(const t5_matrix *m) { return lt_ceil_div(m->rows, T5_ROWS); }

static inline const uint8_t *t5_block(const t5_matrix *m, int32_t block) {
    return m->data + (int64_t)block * m->groups * T5_VECTOR;
}

static inline int32_t t5_units(const lt_op *op, const lt_step *step) {
    return lt_rows(op, step) ? lt_ceil_div(op->arg[0].cols, T5_ROWS * T5_BLOCKS_PER_PART) : 0;
}

/* The last step of every linear_t5: integer sums of one block and one token become floats. */
static inline void t5_finish(const lt_op *op, const lt_step *step, const t5_matrix *m, int32_t block, int32_t token,
                             const int32_t sums[T5_ROWS]) {
    float *y = (float *)lt_row(op, step, 0, token) + block * T5_ROWS;
    const float scale = *(const float *)lt_row(op, step, 2, token), *row_scale = m->row_scale + block * T5_ROWS;
    const int32_t rows = lt_min(T5_ROWS, m->rows - block * T5_ROWS);
    for (int32_t r = 0; r < rows; r++) y[r] = (float)sums[r] * (scale * row_scale[r]);
}

/* Integer sums of one block and one token, for kernels that take them one by one. */
typedef void t5_block_times_token(const uint8_t *block, const int8_t *codes, int32_t groups, int32_t sums[T5_ROWS]);

static inline __attribute__((always_inline)) void t5_one_by_one(const lt_op *op, const lt_step *step, int32_t begin,
                                                                int32_t end, t5_block_times_token *times) {
    const t5_matrix m = t5_open(op, step);
    const int32_t last = lt_min(end * T5_BLOCKS_PER_PART, t5_blocks(&m));
    for (int32_t block = begin * T5_BLOCKS_PER_PART; block < last; block++)
        for (int32_t token = 0; token < lt_rows(op, step); token++) {
            int32_t sums[T5_ROWS];
            times(t5_block(&m, block), lt_row(op, step, 1, token), m.groups, sums);
            t5_finish(op, step, &m, block, token, sums);
        }
}
