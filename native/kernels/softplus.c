/* softplus(y, x; least, most): y = log(1 + e^x), within these limits: how long a step of Mamba 2's heads is. A number per
 * head and row, so plain doubles will do. */
#include <math.h>

#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < op->arg[0].cols; i++) {
            const double softplus = fmax((double)x[i], 0) + log1p(exp(-fabs((double)x[i])));
            y[i] = (float)fmin(fmax(softplus, op->f[0]), op->f[1]);
        }
    }
}

LT_KERNEL(softplus, lt_rows, run);
