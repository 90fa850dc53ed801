#define BITS 8
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_u8, linear_units, linear_run);
