/* What delta_rule and state_space share: heads that remember a matrix S, of a row per column of their keys.
 *
 * A part is sixteen columns of a head's S, which know nothing of the others; its memory is float [rows][16], part by
 * part, from dim[0] on. arg[0] is what heads give, side by side, arg[4] a number of each head. Sums over rows are SUMS,
 * each of every fourth row. */
#pragma once

#include "f32x16.h"
#include "kernel.h"

enum { SUMS = 4 };

static inline f32x16 total(const f32x16 *sums) { return vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])); }

static inline int32_t parts_of_head(const lt_op *op) { return lt_ceil_div(op->arg[0].cols / op->arg[4].cols, 16); }

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return op->arg[4].cols * parts_of_head(op);
}

/* A part's S where it is to be after the step, as it was before. */
static inline float *remembered(const lt_op *op, const lt_step *step, int32_t part, int32_t rows) {
    const int64_t at = op->dim[0] + (int64_t)part * rows * 16;
    const size_t nbytes = (size_t)rows * 16 * sizeof(float);
    float *S = (float *)step->space[LT_AFTER] + at;
    if (step->pos) memcpy(S, (const float *)step->space[LT_BEFORE] + at, nbytes);
    else memset(S, 0, nbytes);
    return S;
}

/* S = decay S + key value; returns query S. */
static f32x16 remember(float *S, const float *key, const float *query, f32x16 value, f32x16 decay, int32_t rows) {
    f32x16 y[SUMS];
    for (int32_t j = 0; j < SUMS; j++) y[j] = vset1(0);
    int32_t i = 0;
    for (; i + SUMS <= rows; i += SUMS)
        for (int32_t j = 0; j < SUMS; j++) {
            const f32x16 s = vfma(value, vset1(key[i + j]), vmul(vload(S + (i + j) * 16), decay));
            vstore(S + (i + j) * 16, s);
            y[j] = vfma(s, vset1(query[i + j]), y[j]);
        }
    for (; i < rows; i++) {
        const f32x16 s = vfma(value, vset1(key[i]), vmul(vload(S + i * 16), decay));
        vstore(S + i * 16, s);
        y[0] = vfma(s, vset1(query[i]), y[0]);
    }
    return total(y);
}
