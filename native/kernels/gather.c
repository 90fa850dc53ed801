/* gather(y, x, place, share): the sum of the rows of x at a row's places, each times its share. */
#include "f32x16.h"
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[0].cols;
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const int32_t *place = lt_row(op, step, 2, row);
        const float *share = lt_row(op, step, 3, row);
        memset(y, 0, (size_t)n * sizeof *y);
        for (int32_t k = 0; k < op->arg[2].cols; k++) {
            const float *x = lt_row(op, step, 1, place[k]);
            const f32x16 s = vset1(share[k]);
            int32_t i = 0;
            for (; i + 16 <= n; i += 16) vstore(y + i, vfma(vload(x + i), s, vload(y + i)));
            if (i < n) vstoren(y + i, vfma(vloadn(x + i, n - i), s, vloadn(y + i, n - i)), n - i);
        }
    }
}

LT_KERNEL(gather, lt_rows, run);
