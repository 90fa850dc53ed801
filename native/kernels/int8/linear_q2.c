#define BITS 2
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q2, linear_units, linear_run);
