#define BITS 3
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q3, linear_units, linear_run);
