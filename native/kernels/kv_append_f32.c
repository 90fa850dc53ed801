#include "kv_f32.h"
#include "kv_append.h"

LT_KERNEL(kv_append_f32, lt_rows, run);
