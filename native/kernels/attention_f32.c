#include "kv_f32.h"
#include "attention_float.h"

LT_KERNEL(attention_f32, units, run);
