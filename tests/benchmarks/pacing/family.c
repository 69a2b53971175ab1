/* The processes that are looked at. */
#include "pace.h"

#include <dirent.h>
#include <time.h>

static int parent_of(int pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    int parent = 0;
    char *name_end = strrchr(text, ')');
    if (name_end) sscanf(name_end + 1, " %*c %d", &parent);
    return parent;
}

static int64_t spent_by(int pid) {
    clockid_t clock;
    struct timespec time;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &time)) return 0;
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Returns where in the family a process is, or -1. */
int place_of(const Family *family, int pid) {
    for (int index = 0; index < family->count; index++)
        if (family->pids[index] == pid) return index;
    return -1;
}

/* A process and its descendants. The numbers of processes may wrap around, hence it goes on until nobody new is found. */
Family family_of(int root) {
    Family family = {.count = 1, .pids = {root}};
    for (int before = 0; before != family.count;) {
        before = family.count;
        DIR *folder = opendir("/proc");
        if (!folder) fail("/proc");
        for (struct dirent *entry; (entry = readdir(folder));) {
            int pid = atoi(entry->d_name);
            if (pid > 0 && family.count < FAMILY && place_of(&family, pid) < 0 && place_of(&family, parent_of(pid)) >= 0)
                family.pids[family.count++] = pid;
        }
        closedir(folder);
    }
    return family;
}

void take_time_of(Family *family) {
    for (int index = 0; index < family->count; index++) family->spent[index] = spent_by(family->pids[index]);
}

long resident_kib(const Family *family) {
    long pages = 0;
    for (int index = 0; index < family->count; index++) {
        char path[64];
        long resident = 0;
        snprintf(path, sizeof path, "/proc/%d/statm", family->pids[index]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fscanf(file, "%*d %ld", &resident) == 1) pages += resident;
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}
