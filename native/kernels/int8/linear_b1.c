#define BITS 1
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_b1, linear_units, linear_run);
