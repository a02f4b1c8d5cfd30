/* Preloaded into a program: keeps an image of what the program has synced of its files below one folder, so that a power cut
 * can be had at any instant by killing the program and going on from the image.
 *
 * A write changes the real file and is remembered. A sync of a file copies the places that were written when it began into the
 * image, with what is there when it ends; a sync of a folder copies its list of names. Nothing else reaches the image. The device itself is never asked to sync.
 *
 *   FORGETFUL_ROOT     the folder, without symbolic links
 *   FORGETFUL_IMAGE    its image: files/<inode> are contents, folders/<inode> are lists of "type inode name"
 *   FORGETFUL_SYNC_US  how long a sync takes at least, in microseconds
 *   FORGETFUL_MARK     a file that is made when a sync of a file has begun, if that is asked for
 *
 * What the image cannot follow ends the program: a shared writable mapping of a file below the folder, unless it is an index
 * of a write-ahead log (-shm), which no power cut survives anyway.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES_MAX 4096
#define RANGES_MAX 256

struct range {
    off_t from, to;
};

/* What was done to a file. */
struct written {
    off_t shortest; /* the shortest that it was meanwhile */
    off_t size;     /* how long it was at the end */
    size_t ranges_count;
    struct range ranges[RANGES_MAX];
};

/* A file below the folder that was written or synced. Its descriptors stay open for the life of the program: closing any
 * descriptor of a file gives up the locks that the program has on it, and an open file keeps its inode number. */
struct file {
    dev_t device;
    ino_t inode;
    int source, image;
    struct written since;   /* since the last sync began */
    struct written syncing; /* before, by those that have not ended */
};

static const char *root, *image_folder, *mark;
static size_t root_length;
static useconds_t sync_us;
static struct file *files[FILES_MAX];
static size_t files_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void give_up(const char *why, const char *what) {
    dprintf(2, "forgetful disk: %s: %s: %s\n", why, what, strerror(errno));
    _exit(99);
}

__attribute__((constructor)) static void begin(void) {
    const char *microseconds = getenv("FORGETFUL_SYNC_US");
    image_folder = getenv("FORGETFUL_IMAGE");
    mark = getenv("FORGETFUL_MARK");
    sync_us = microseconds ? (useconds_t)strtoul(microseconds, NULL, 10) : 0;
    root = image_folder ? getenv("FORGETFUL_ROOT") : NULL;
    root_length = root ? strlen(root) : 0;
}

/* Whether an open file or folder lies in the folder, or is it. */
static int is_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, root, root_length) != 0 || (path[root_length] != '/' && path[root_length] != 0)) return 0;
    return length < 4 || strcmp(path + length - 4, "-shm") != 0;
}

/* The file behind a descriptor, if it is one of ours. The lock is held. */
static struct file *known(int fd, const struct stat *is) {
    for (size_t i = 0; i < files_count; i++)
        if (files[i]->inode == is->st_ino && files[i]->device == is->st_dev) return files[i];
    if (!is_below(fd)) return NULL;
    struct file *file = files_count < FILES_MAX ? calloc(1, sizeof *file) : NULL;
    if (!file) give_up("too many files", root);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    file->source = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "%s/files/%ju", image_folder, (uintmax_t)is->st_ino);
    file->image = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file->source < 0 || file->image < 0) give_up("cannot open", path);
    file->device = is->st_dev;
    file->inode = is->st_ino;
    file->since.shortest = file->syncing.shortest = is->st_size;
    return files[files_count++] = file;
}

static struct file *ours(int fd) {
    struct stat is;
    if (!root || fstat(fd, &is) != 0 || !S_ISREG(is.st_mode)) return NULL;
    return known(fd, &is);
}

static void remember(struct written *written, off_t from, off_t to) {
    for (size_t i = 0; i < written->ranges_count; i++) {
        struct range *range = &written->ranges[i];
        if (from <= range->to && range->from <= to) {
            if (from < range->from) range->from = from;
            if (to > range->to) range->to = to;
            return;
        }
    }
    if (written->ranges_count == RANGES_MAX) {
        /* One range that has them all: a sync may well copy more than it must. */
        for (size_t i = 0; i < RANGES_MAX; i++) {
            if (written->ranges[i].from < from) from = written->ranges[i].from;
            if (written->ranges[i].to > to) to = written->ranges[i].to;
        }
        written->ranges_count = 0;
    }
    written->ranges[written->ranges_count++] = (struct range){from, to};
}

static void copy(struct file *file, struct range range) {
    static char bytes[1 << 16]; /* the lock is held */
    while (range.from < range.to) {
        size_t wanted = (size_t)(range.to - range.from) < sizeof bytes ? (size_t)(range.to - range.from) : sizeof bytes;
        ssize_t got = pread(file->source, bytes, wanted, range.from);
        if (got < 0) give_up("cannot read", "a file to be synced");
        if (got == 0) return;
        if (syscall(SYS_pwrite64, file->image, bytes, (size_t)got, range.from) != got) give_up("cannot write", image_folder);
        range.from += got;
    }
}

/* A disk promises what was written before it was asked to sync. The lock is held. */
static void begin_sync(struct file *file) {
    struct stat is;
    if (fstat(file->source, &is) != 0) give_up("cannot look at", "a file to be synced");
    struct written *since = &file->since, *syncing = &file->syncing;
    for (size_t i = 0; i < since->ranges_count; i++) remember(syncing, since->ranges[i].from, since->ranges[i].to);
    if (since->shortest < syncing->shortest) syncing->shortest = since->shortest;
    syncing->size = since->shortest = is.st_size;
    since->ranges_count = 0;
}

/* Whoever ends first has the others' too. The lock is held. */
static void end_sync(struct file *file) {
    struct written *syncing = &file->syncing;
    struct stat was;
    if (fstat(file->image, &was) != 0) give_up("cannot look at", image_folder);
    if (syncing->shortest < was.st_size && syscall(SYS_ftruncate, file->image, syncing->shortest) != 0)
        give_up("cannot cut", image_folder);
    for (size_t i = 0; i < syncing->ranges_count; i++) {
        struct range range = syncing->ranges[i];
        if (range.to > syncing->size) range.to = syncing->size;
        copy(file, range);
    }
    if (syscall(SYS_ftruncate, file->image, syncing->size) != 0) give_up("cannot cut", image_folder);
    syncing->ranges_count = 0;
    syncing->shortest = syncing->size;
}

static void sync_folder(int fd, ino_t inode) {
    char fresh[PATH_MAX + 8], path[PATH_MAX];
    snprintf(path, sizeof path, "%s/folders/%ju", image_folder, (uintmax_t)inode);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    DIR *folder = fdopendir(openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    FILE *list = fopen(fresh, "we");
    if (!folder || !list) give_up("cannot list", path);
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            fprintf(list, "%c %ju %s\n", entry->d_type == DT_DIR ? 'd' : 'f', (uintmax_t)entry->d_ino, entry->d_name);
    closedir(folder);
    if (fclose(list) != 0 || syscall(SYS_renameat2, AT_FDCWD, fresh, AT_FDCWD, path, 0) != 0) give_up("cannot list", path);
}

static int sync_any(int fd, long real) {
    struct stat is;
    if (!root || fstat(fd, &is) != 0 || !(S_ISREG(is.st_mode) || S_ISDIR(is.st_mode)) || !is_below(fd))
        return (int)syscall(real, fd);
    pthread_mutex_lock(&lock);
    struct file *file = S_ISDIR(is.st_mode) ? NULL : known(fd, &is);
    if (file) begin_sync(file);
    pthread_mutex_unlock(&lock);
    if (file && mark) close(open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (sync_us) usleep(sync_us);
    pthread_mutex_lock(&lock);
    if (file) end_sync(file);
    else sync_folder(fd, is.st_ino);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

/* The lock is held over a write and its note: a sync must find both or neither. */
#define WRITING(fd, from_of, call)                                  \
    struct file *file = NULL;                                       \
    struct stat is;                                                 \
    int may_be = root && fstat(fd, &is) == 0 && S_ISREG(is.st_mode); \
    if (may_be) {                                                   \
        pthread_mutex_lock(&lock);                                  \
        file = known(fd, &is);                                      \
    }                                                               \
    ssize_t written = (ssize_t)(call);                              \
    int error = errno;                                              \
    if (file && written > 0) {                                      \
        off_t from = (from_of);                                     \
        remember(&file->since, from, from + written);               \
    }                                                               \
    if (may_be) pthread_mutex_unlock(&lock);                        \
    errno = error;                                                  \
    return written

/* Where a write at the descriptor's own place began, asked afterwards. */
#define BEFORE(fd) (lseek(fd, 0, SEEK_CUR) - written)

ssize_t write(int fd, const void *bytes, size_t count) { WRITING(fd, BEFORE(fd), syscall(SYS_write, fd, bytes, count)); }
ssize_t writev(int fd, const struct iovec *parts, int count) { WRITING(fd, BEFORE(fd), syscall(SYS_writev, fd, parts, count)); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    WRITING(fd, at, syscall(SYS_pwrite64, fd, bytes, count, at));
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    WRITING(fd, at, syscall(SYS_pwritev, fd, parts, count, at, 0));
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return pwritev64(fd, parts, count, at); }

/* A copy within the kernel is a write that would pass by unseen: whoever wants one reads and writes in its place. */
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t count, unsigned int flags) {
    (void)from, (void)from_at, (void)to, (void)to_at, (void)count, (void)flags;
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t count) {
    (void)to, (void)from, (void)at, (void)count;
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile(int to, int from, off_t *at, size_t count) { return sendfile64(to, from, at, count); }

int ftruncate64(int fd, off64_t length) {
    pthread_mutex_lock(&lock);
    struct file *file = ours(fd);
    int answer = (int)syscall(SYS_ftruncate, fd, length);
    int error = errno;
    if (file && answer == 0 && length < file->since.shortest) file->since.shortest = length;
    pthread_mutex_unlock(&lock);
    errno = error;
    return answer;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t from) {
    struct stat is;
    int is_shared = root && fd >= 0 && (flags & (MAP_SHARED | MAP_ANONYMOUS)) == MAP_SHARED && (protection & PROT_WRITE);
    if (is_shared && fstat(fd, &is) == 0 && S_ISREG(is.st_mode) && is_below(fd))
        give_up("a file is written through a mapping", root);
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, from);
}
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t from) {
    return mmap64(at, length, protection, flags, fd, from);
}

/* A name that goes may be the last of its file. The synced lists may still have it, so its inode number must not be given
 * to another: a descriptor that is never closed keeps it. */
static void keep(int folder, const char *path) {
    if (root) {
        int kept = openat(folder, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        (void)kept;
    }
}

int unlinkat(int folder, const char *path, int flags) {
    keep(folder, path);
    return (int)syscall(SYS_unlinkat, folder, path, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    keep(to_folder, to);
    return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return renameat2(from_folder, from, to_folder, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
