/* What writer.c and writer_areas.c have in common. */
#define PAGES 128
#define AREAS 10
#define THREADS 4
#define PAGE 4096ul

enum { ANON, HUGE, MEMFD, FILE_PRIVATE, SHARED_ANON, TOGGLED, REMAPPED, MOVED, HEAP, GROWN, PIECES };

/* Memory of PAGES pages. */
void *map_area(int kind);
