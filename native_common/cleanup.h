/* Variables that are released when their scope ends, and errors that are returned at once. */
#ifndef UT_CLEANUP_H
#define UT_CLEANUP_H
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void ut_close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void ut_close_file(FILE **file)
{
	if (*file)
		fclose(*file);
}

static inline void ut_close_dir(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

static inline void ut_free_memory(void *pointer)
{
	free(*(void **)pointer);
}

/* A variable declared with one of these is released when its scope ends. */
#define AUTO_FD __attribute__((cleanup(ut_close_fd))) int
#define AUTO_FILE __attribute__((cleanup(ut_close_file))) FILE *
#define AUTO_DIR __attribute__((cleanup(ut_close_dir))) DIR *
#define AUTO_FREE __attribute__((cleanup(ut_free_memory)))

/* Take the descriptor out of the variable, so that the scope does not close it. */
static inline int ut_keep_fd(int *fd)
{
	int kept = *fd;

	*fd = -1;
	return kept;
}

/* If a call returns an error, return that. */
#define TRY(call)                                                                                  \
	do {                                                                                       \
		int try_err = (call);                                                              \
		if (try_err < 0)                                                                   \
			return try_err;                                                            \
	} while (0)

#endif
