/* clamped_swiglu(y, gate, up; alpha, limit): y = g / (1 + e^(-alpha g)) * (u + 1), g = min(gate, limit) and u = up within
 * -limit..limit (gpt-oss, 2025). */
#define GATED(op, gate, up) swiglu(op, gate, up)
#include "f32x16.h"
#include "kernel.h"
static inline f32x16 swiglu(const lt_op *op, f32x16 gate, f32x16 up) {
    const f32x16 limit = vset1(op->f[1]), g = vmin(gate, limit), u = vmin(vmax(up, vset1(-op->f[1])), limit);
    return vmul(vdiv(g, vadd(vset1(1), vexp(vmul(g, vset1(-op->f[0]))))), vadd(u, vset1(1)));
}

#include "gated.h"

LT_KERNEL(clamped_swiglu, lt_rows, run);
