/* silu_mul(y, gate, up): y = gate / (1 + e^-gate) * up (SwiGLU: Shazeer 2020). */
#define GATED(op, gate, up) vmul(silu(gate), up)
#include "f32x16.h"
static inline f32x16 silu(f32x16 x) { return vdiv(x, vadd(vset1(1), vexp(vsub(vset1(0), x)))); }

#include "gated.h"

LT_KERNEL(silu_mul, lt_rows, run);
