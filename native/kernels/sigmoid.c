/* sigmoid(y, x): y = 1 / (1 + e^-x). */
#define EACH(op, x) vdiv(vset1(1), vadd(vset1(1), vexp(vsub(vset1(0), x))))
#include "each.h"

LT_KERNEL(sigmoid, lt_rows, run);
