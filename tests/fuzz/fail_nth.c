/* Preloaded before a process starts: makes the nth system call on files below a folder fail, as a bad disk would.

   fail_nth(n, code, folder) sets it: code is an errno; 0 stands for a write that takes half of what it is given. With
   `lasting`, every write after it fails too, as on a full disk. fail_nth(-1, 0, "") turns it off. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1;
static int wrong, lasting;
static char below[4096];

void fail_nth(long n, int code, const char *folder, int last) {
    wrong = code;
    lasting = last;
    strncpy(below, folder, sizeof below - 1);
    __atomic_store_n(&left, n, __ATOMIC_SEQ_CST);
}

long calls_left(void) { return __atomic_load_n(&left, __ATOMIC_SEQ_CST); }

static int hit(const char *path) {
    if (!path || __atomic_load_n(&left, __ATOMIC_SEQ_CST) < 0 || strncmp(path, below, strlen(below))) return 0;
    if (__atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST) >= 0) return 0;
    if (lasting) __atomic_store_n(&left, 0, __ATOMIC_SEQ_CST);
    return 1;
}

static int hit_fd(int fd) {
    char link[64], path[4096];
    if (__atomic_load_n(&left, __ATOMIC_SEQ_CST) < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return hit(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_PATH(path) if (wrong && hit(path)) { errno = wrong; return -1; }
#define FAIL_FD(fd) if (wrong && hit_fd(fd)) { errno = wrong; return -1; }

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    FAIL_PATH(path)
    return REAL(open64)(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    FAIL_PATH(path)
    return REAL(open)(path, flags, mode);
}
ssize_t write(int fd, const void *data, size_t size) {
    if (hit_fd(fd)) {
        if (!wrong) return REAL(write)(fd, data, size > 1 ? size / 2 : size);
        errno = wrong;
        return -1;
    }
    return REAL(write)(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (hit_fd(fd)) {
        if (!wrong) return REAL(pwrite64)(fd, data, size > 1 ? size / 2 : size, at);
        errno = wrong;
        return -1;
    }
    return REAL(pwrite64)(fd, data, size, at);
}
ssize_t read(int fd, void *data, size_t size) { FAIL_FD(fd) return REAL(read)(fd, data, size); }
int fsync(int fd) { FAIL_FD(fd) return REAL(fsync)(fd); }
int ftruncate64(int fd, off64_t size) { FAIL_FD(fd) return REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) { FAIL_PATH(from) return REAL(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { FAIL_PATH(path) return REAL(mkdir)(path, mode); }
int unlink(const char *path) { FAIL_PATH(path) return REAL(unlink)(path); }
int stat64(const char *path, struct stat64 *status) { FAIL_PATH(path) return REAL(stat64)(path, status); }
int lstat64(const char *path, struct stat64 *status) { FAIL_PATH(path) return REAL(lstat64)(path, status); }
