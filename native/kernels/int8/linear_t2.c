#define BITS 2
#define WHOLE 1
#include "uniform.h"

LT_KERNEL(linear_t2, linear_units, linear_run);
