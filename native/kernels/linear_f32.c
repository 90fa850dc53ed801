#include "f32.h"

LT_KERNEL(linear_f32, linear_units, linear_run);
