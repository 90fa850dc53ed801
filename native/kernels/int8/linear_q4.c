#define BITS 4
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q4, linear_units, linear_run);
