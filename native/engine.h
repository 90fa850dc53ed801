/* The engine's inside: a pool of threads that walk the stages of one plan at a time. */
#pragma once
#include "api.h"

/* A list of stages that the pool runs with a barrier after each. */
typedef struct lt_job {
    int32_t n_stages;
    /* How many parts the stage has in this run. */
    int32_t (*units)(const struct lt_job *job, int32_t stage);
    /* Computes parts begin <= i < end of the stage. */
    void (*run)(const struct lt_job *job, int32_t stage, int32_t begin, int32_t end);
    const lt_step *step;
} lt_job;

/* LT_OK, or LT_CANCELLED when the step's flag stopped it. */
int32_t lt_engine_run(lt_engine *engine, const lt_job *job);
uint32_t lt_engine_features(const lt_engine *engine);
