#define BITS 6
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q6, linear_units, linear_run);
