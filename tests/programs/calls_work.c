/* Calls that are work: on a file system in user space, of the BPF verifier, of an allocation. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "calls.h"

/* Each of these is a request that takes a while. What makes or removes a name must be done once. */
static void files(void)
{
	struct stat st;
	struct statfs fs;
	char room[64];
	int fd;

	fd = open(in_dir("file"), O_RDWR);
	must(fd >= 0, "open");
	must(!fstat(fd, &st) && !stat(in_dir("file"), &st), "stat");
	must(pread(fd, room, 4, 0) == 4 && !memcmp(room, "text", 4), "pread");
	must(pwrite(fd, "text", 4, 0) == 4, "pwrite");
	must(!posix_fadvise(fd, 0, 4096, POSIX_FADV_DONTNEED), "fadvise"); /* or the page would be there already */
	char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);

	must(page != MAP_FAILED && !memcmp(page, "text", 4), "a page fault"); /* SIGBUS, if it is interrupted */
	must(!munmap(page, 4096), "munmap");
	must(!fsync(fd), "fsync");
	must(!ftruncate(fd, 4), "ftruncate");
	must(!fchmod(fd, 0644), "fchmod");
	must(fgetxattr(fd, "user.x", room, sizeof(room)) == 4, "fgetxattr");
	must(!fsetxattr(fd, "user.x", "text", 4, 0), "fsetxattr");
	must(!close(fd) || errno == EINTR, "close"); /* which cannot be made again: docs/limits.md */
	must(!mkdir(in_dir("new"), 0755), "mkdir");
	must(!rename(in_dir("new"), in_dir("other")), "rename");
	must(!rmdir(in_dir("other")), "rmdir");
	must(!symlink("file", in_dir("new")), "symlink");
	must(readlink(in_dir("new"), room, sizeof(room)) == 4, "readlink");
	must(!unlink(in_dir("new")), "unlink");
	must(!statfs(dir, &fs), "statfs");
}

struct counter on_files[] = {{"files", files, 0}, {NULL, NULL, 0}};

/* A loop that the verifier walks through step by step. */
static void load(void)
{
	struct bpf_insn code[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
		{.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 0, .imm = 1},
		{.code = BPF_JMP | BPF_JLT | BPF_K, .dst_reg = 0, .off = -2, .imm = 60000},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
		{.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = sizeof(code) / sizeof(*code)};
	int fd;

	attr.insns = (uintptr_t)code;
	attr.license = (uintptr_t)"GPL";
	fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	if (fd < 0 && errno == EPERM)
		exit(77);
	must(fd >= 0, "bpf(BPF_PROG_LOAD)");
	must(!close(fd), "close of a program");
}

struct counter on_load[] = {{"load", load, 0}, {NULL, NULL, 0}};

static void allocate(void)
{
	int fd = memfd_create("allocate", 0);

	must(fd >= 0, "memfd_create");
	must(!fallocate(fd, 0, 0, 64 << 20), "fallocate");
	must(!close(fd), "close of a memfd");
}

struct counter on_allocate[] = {{"allocate", allocate, 0}, {NULL, NULL, 0}};
