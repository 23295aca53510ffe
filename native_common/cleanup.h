/* What is released when its scope ends, and errors that are handed on at once. */
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

/* A declaration that begins with one of these releases what the variable holds when its scope ends. */
#define AUTO_FD __attribute__((cleanup(ut_close_fd))) int
#define AUTO_FILE __attribute__((cleanup(ut_close_file))) FILE *
#define AUTO_DIR __attribute__((cleanup(ut_close_dir))) DIR *
#define AUTO_FREE __attribute__((cleanup(ut_free_memory)))

/* The descriptor, which its scope is not to close any more. */
static inline int ut_keep_fd(int *fd)
{
	int kept = *fd;

	*fd = -1;
	return kept;
}

/* Return what a call says where that is an error. */
#define TRY(call)                                                                                  \
	do {                                                                                       \
		int try_err = (call);                                                              \
		if (try_err < 0)                                                                   \
			return try_err;                                                            \
	} while (0)

#endif
