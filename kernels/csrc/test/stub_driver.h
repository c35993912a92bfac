/* What the stand-in driver remembers; the test reads it through the exported symbol `stub`. */

#ifndef STUB_DRIVER_H
#define STUB_DRIVER_H

#include <stddef.h>
#include <stdint.h>

enum { STUB_PARAMETERS = 32, STUB_KEPT = 16 };

typedef struct stub_launch {
    const void *image;
    unsigned grid[3], block[3], shared;
    void *stream;
    int no_extra;
    uint64_t parameters[STUB_PARAMETERS]; /* eight bytes from where each pointer points */
} stub_launch;

typedef struct stub_record {
    int calls, retained, released, pushed, popped, loaded, unloaded, launched, allocated, freed, opted_in;
    int parameters_to_read; /* how many the next launches have; set by the test */
    void *last_image;
    char last_entry[128];
    stub_launch launches[STUB_KEPT]; /* ring */
} stub_record;

#endif
