#define BITS 1
#define WHOLE 0
#include "uniform.h"

#include "lut.h"

LT_KERNEL(linear_b1, linear_units, lut_run);
