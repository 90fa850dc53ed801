/* decay(y, x, rate): y = e^(-rate log(1 + e^x)), in 0..1: the share that a recurrent layer's heads keep of their memory
 * (Mamba 2: Dao & Gu 2024). A number per head and row, so plain doubles will do. */
#include <math.h>

#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const float *rate = lt_row(op, step, 2, 0);
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < op->arg[0].cols; i++) {
            const double softplus = fmax((double)x[i], 0) + log1p(exp(-fabs((double)x[i])));
            y[i] = (float)exp(-(double)rate[i] * softplus);
        }
    }
}

LT_KERNEL(decay, lt_rows, run);
