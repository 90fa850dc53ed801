/* Matrices stored row by row, one element per weight, used with float activations.
 * Include after defining ELEMENT, LOAD and LOADN (16 elements, or the first n, as floats).
 *
 * linear(y, x, weight[, scale]): y = x weight^T, each output row times its scale if there is one.
 * embed(y, ids, weight[, scale]): rows of the matrix.
 *
 * With GROUP, a multiple of 16, every GROUP columns of a row may have a scale of their own. */
#include "f32x16.h"
#include "kernel.h"

enum { ROWS = 4, TOKENS = 4, ROWS_PER_PART = 16 };

#ifdef GROUP
static inline const float *row_scales(const lt_op *op, const lt_step *step, int32_t row) {
    return lt_row(op, step, 3, row);
}

/* Columns of a row of n that share a scale. */
static inline int32_t group_of(const lt_op *op, int32_t n) { return op->arg[3].cols > 1 ? GROUP : lt_max(n, 1); }
#else
static inline float row_scale(const lt_op *op, const lt_step *step, int32_t row) {
    const float *scale = lt_row(op, step, 3, 0);
    return scale ? scale[row] : 1.0f;
}
#endif

/* Columns from *i to before `end`, added to the sums. ahead: elements from a row to that which comes next. */
static inline __attribute__((always_inline)) void columns(const ELEMENT *const w[], const float *const x[], int32_t rows,
                                                          int32_t tokens, int32_t *at, int32_t end, int64_t ahead,
                                                          f32x16 acc[ROWS][TOKENS]) {
    int32_t i = *at;
    for (; i + 16 <= end; i += 16)
        for (int r = 0; r < rows; r++) {
            if (tokens == 1) __builtin_prefetch(w[r] + i + ahead);
            f32x16 weight = LOAD(w[r] + i);
            for (int t = 0; t < tokens; t++) acc[r][t] = vfma(weight, vload(x[t] + i), acc[r][t]);
        }
    if (i < end)
        for (int r = 0; r < rows; r++) {
            f32x16 weight = LOADN(w[r] + i, end - i);
            for (int t = 0; t < tokens; t++) acc[r][t] = vfma(weight, vloadn(x[t] + i, end - i), acc[r][t]);
        }
    *at = end;
}

/* Every (row, token) has its own accumulator, so how they are tiled does not change a bit of the result. */
static inline __attribute__((always_inline)) void tile(const lt_op *op, const lt_step *step, int32_t row,
                                                       int32_t rows, int32_t token, int32_t tokens) {
    const int32_t n = op->arg[1].cols;
    const ELEMENT *w[ROWS];
    const float *x[TOKENS];
    f32x16 acc[ROWS][TOKENS];
    for (int r = 0; r < rows; r++) w[r] = lt_row(op, step, 2, row + r);
    for (int t = 0; t < tokens; t++) x[t] = lt_row(op, step, 1, token + t);
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) acc[r][t] = vset1(0);
    int32_t i = 0;
#ifdef GROUP
    const int32_t group = group_of(op, n);
    f32x16 sum[ROWS][TOKENS];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) sum[r][t] = vset1(0);
    for (int32_t g = 0; i < n; g++) {
        columns(w, x, rows, tokens, &i, lt_min(i + group, n), (int64_t)rows * n, acc);
        for (int r = 0; r < rows; r++) {
            const f32x16 scale = vset1(row_scales(op, step, row + r)[g]);
            for (int t = 0; t < tokens; t++) {
                sum[r][t] = vfma(acc[r][t], scale, sum[r][t]);
                acc[r][t] = vset1(0);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) ((float *)lt_row(op, step, 0, token + t))[row + r] = vsum(sum[r][t]);
#else
    columns(w, x, rows, tokens, &i, n, (int64_t)rows * n, acc);
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            ((float *)lt_row(op, step, 0, token + t))[row + r] = vsum(acc[r][t]) * row_scale(op, step, row + r);
#endif
}

static inline void linear_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n_tokens = lt_rows(op, step), last = lt_min(end * ROWS_PER_PART, op->arg[0].cols);
    for (int32_t token = 0; token < n_tokens;) {
        const int32_t tokens = n_tokens - token >= TOKENS ? TOKENS : 1;
        for (int32_t row = begin * ROWS_PER_PART; row < last;) {
            const int32_t rows = last - row >= ROWS ? ROWS : 1;
            if (rows == ROWS && tokens == TOKENS) tile(op, step, row, ROWS, token, TOKENS);
            else if (rows == ROWS) tile(op, step, row, ROWS, token, 1);
            else if (tokens == TOKENS) tile(op, step, row, 1, token, TOKENS);
            else tile(op, step, row, 1, token, 1);
            row += rows;
        }
        token += tokens;
    }
}

static inline int32_t linear_units(const lt_op *op, const lt_step *step) {
    return lt_rows(op, step) ? lt_ceil_div(op->arg[0].cols, ROWS_PER_PART) : 0;
}

static inline void embed_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[0].cols;
    for (int32_t row = begin; row < end; row++) {
        const int32_t id = *(const int32_t *)lt_row(op, step, 1, row);
        float *y = lt_row(op, step, 0, row);
        const ELEMENT *w = lt_row(op, step, 2, id);
#ifdef GROUP
        const float *scales = row_scales(op, step, id);
        const int32_t group = group_of(op, n);
#else
        const float one = row_scale(op, step, id), *scales = &one;
        const int32_t group = lt_max(n, 1);
#endif
        int32_t i = 0;
        for (; i + 16 <= n; i += 16) vstore(y + i, vmul(LOAD(w + i), vset1(scales[i / group])));
        if (i < n) vstoren(y + i, vmul(LOADN(w + i, n - i), vset1(scales[i / group])), n - i);
    }
}
