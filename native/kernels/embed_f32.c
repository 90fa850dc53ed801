#include "f32.h"

LT_KERNEL(embed_f32, lt_rows, embed_run);
