// A driver (libcuda) and NCCL without GPUs: bytes go between real processes of one machine, through sockets.
//
// Addresses of device memory are no addresses of the process: whoever follows one crashes. A stream runs its work in a thread
// of its own. As in NCCL, a send is done when the partner has received; calls outside a group wait for each other; a partner
// that is gone is not noticed; a communicator that does not block puts its work on the stream some time after the call.
// Structures and numbers are those of cuda.h and nccl.h.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int DEVICES = 8;

enum Result { SUCCESS = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_READY = 600, FAILED = 719 };

int refuse(int result, const char *call, const char *why) {
    fprintf(stderr, "stand-in: %s: %s\n", call, why);
    return result;
}

// --- The driver -------------------------------------------------------------------------------------------

struct Context {
    int device;
};

struct Stream {
    Context *context;
    std::mutex mutex;
    std::condition_variable changed;
    // The first is being run.
    std::deque<std::function<int()>> work;
    int failed = SUCCESS;
    bool ending = false;
    std::thread thread;

    void put(std::function<int()> one) {
        std::lock_guard<std::mutex> guard(mutex);
        work.push_back(std::move(one));
        changed.notify_all();
    }

    void run() {
        std::unique_lock<std::mutex> guard(mutex);
        for (;;) {
            changed.wait(guard, [&] { return ending || !work.empty(); });
            if (work.empty()) return;
            auto one = work.front();
            guard.unlock();
            int result = one();
            guard.lock();
            if (result) failed = result;
            work.pop_front();
        }
    }
};

struct Allocation {
    std::vector<char> bytes;
    int device;
};

std::recursive_mutex mutex;
Context contexts[DEVICES];
std::map<uint64_t, Allocation> allocations;
std::map<char *, size_t> reachable;
uint64_t next_address = uint64_t(1) << 56;
thread_local Context *current = nullptr;

#define CALL                                                                         \
    std::lock_guard<std::recursive_mutex> guard(mutex);                              \
    if (!current) return refuse(INVALID_CONTEXT, __func__, "no context on this thread")

// The bytes at an address of the device; null beyond an allocation.
char *at(uint64_t address, size_t bytes, int device) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    auto &[start, it] = *--after;
    bool inside = it.device == device && address - start + bytes <= it.bytes.size();
    return inside ? it.bytes.data() + (address - start) : nullptr;
}

bool is_reachable(const void *address, size_t bytes) {
    auto after = reachable.upper_bound((char *)address);
    if (after == reachable.begin()) return false;
    auto &[start, size] = *--after;
    return (size_t)((char *)address - start) + bytes <= size;
}

int copy(const char *call, uint64_t device, void *host, size_t bytes, Stream *stream, bool to_device) {
    if (!is_reachable(host, bytes)) return refuse(INVALID_VALUE, call, "host memory that the device does not reach");
    if (stream->context != current) return refuse(INVALID_VALUE, call, "a stream of another context");
    char *place = at(device, bytes, current->device);
    if (!place) return refuse(INVALID_VALUE, call, "beyond an allocation");
    stream->put([=] {
        to_device ? memcpy(place, host, bytes) : memcpy(host, place, bytes);
        return SUCCESS;
    });
    return SUCCESS;
}

} // namespace

EXPORT int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }

EXPORT int cuDeviceGetCount(int *count) {
    const char *few = getenv("DDT_STAND_IN_DEVICES");
    *count = few ? atoi(few) : DEVICES;
    return SUCCESS;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    contexts[device].device = device;
    *context = &contexts[device];
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    for (auto &it : allocations)
        if (it.second.device == device) return refuse(INVALID_VALUE, __func__, "memory is left");
    return SUCCESS;
}

EXPORT int cuCtxSetCurrent(void *context) {
    current = (Context *)context;
    return SUCCESS;
}

EXPORT int cuStreamCreate(void **handle, unsigned flags) {
    CALL;
    if (flags != 1) return refuse(INVALID_VALUE, __func__, "a stream that waits for the default stream");
    auto *stream = new Stream;
    stream->context = current;
    stream->thread = std::thread([stream] { stream->run(); });
    *handle = stream;
    return SUCCESS;
}

EXPORT int cuStreamDestroy_v2(void *handle) {
    if (!current) return refuse(INVALID_CONTEXT, __func__, "no context on this thread");
    auto *stream = (Stream *)handle;
    {
        std::lock_guard<std::mutex> guard(stream->mutex);
        stream->ending = true;
        stream->changed.notify_all();
    }
    stream->thread.join();
    delete stream;
    return SUCCESS;
}

EXPORT int cuStreamQuery(void *handle) {
    CALL;
    auto *stream = (Stream *)handle;
    std::lock_guard<std::mutex> held(stream->mutex);
    return stream->failed ? stream->failed : stream->work.empty() ? SUCCESS : NOT_READY;
}

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CALL;
    if (!bytes) return INVALID_VALUE;
    *address = next_address;
    next_address += bytes + 4096;
    allocations[*address] = {std::vector<char>(bytes, (char)0xFF), current->device};
    return SUCCESS;
}

EXPORT int cuMemFree_v2(uint64_t address) {
    CALL;
    return allocations.erase(address) ? SUCCESS : refuse(INVALID_VALUE, __func__, "nobody's address");
}

EXPORT int cuMemAllocHost_v2(void **address, size_t bytes) {
    CALL;
    char *memory = (char *)malloc(bytes);
    reachable[memory] = bytes;
    *address = memory;
    return SUCCESS;
}

EXPORT int cuMemFreeHost(void *address) {
    CALL;
    if (!reachable.erase((char *)address)) return refuse(INVALID_VALUE, __func__, "nobody's address");
    free(address);
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    CALL;
    return copy(__func__, to, (void *)from, bytes, (Stream *)stream, true);
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    CALL;
    return copy(__func__, from, to, bytes, (Stream *)stream, false);
}

EXPORT int cuGetErrorName(int result, const char **text) {
    *text = result == INVALID_DEVICE    ? "CUDA_ERROR_INVALID_DEVICE"
            : result == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
            : result == FAILED          ? "CUDA_ERROR_LAUNCH_FAILED"
                                        : "CUDA_ERROR_INVALID_VALUE";
    return SUCCESS;
}

// --- NCCL -------------------------------------------------------------------------------------------------

namespace {

enum Status { OK = 0, SYSTEM = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };

constexpr int VERSION = 22703, OLDEST_WITHOUT_BLOCKING = 21400, BYTES = 1;
constexpr uint32_t MAGIC = 0xcafebeef;

struct UniqueId {
    char bytes[128];
};

// What an id holds: where the rank that made it listens.
struct Root {
    uint64_t number;
    uint16_t port;
};

struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

// A rank introduces itself to the root.
struct Hello {
    uint64_t number;
    int rank, size, device;
    uint16_t port;
};

struct Operation {
    bool sends;
    int peer;
    char *place;
    size_t bytes;
};

struct Comm {
    int rank, size, device;
    std::atomic<int> state{IN_PROGRESS};
    std::atomic<bool> aborted{false};
    std::thread joining;
    // To and from each rank: bytes go one way, and a byte that they have come goes back.
    std::vector<int> to, from;
    std::mutex mutex;
    // Work that is not on its stream yet, and how many more looks it takes.
    std::function<void()> deferred;
    int looks = 0;
    bool finalized = false;

    ~Comm() {
        for (auto *all : {&to, &from})
            for (int it : *all)
                if (it >= 0) close(it);
    }
};

struct Handle {
    std::shared_ptr<Comm> comm;
};

struct Call {
    std::shared_ptr<Comm> comm;
    Stream *stream;
    Operation operation;
};

thread_local int depth = 0;
thread_local std::vector<Call> calls;

sockaddr_in local(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

int listener(uint16_t &port) {
    int it = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = local(0);
    socklen_t size = sizeof address;
    if (bind(it, (sockaddr *)&address, size) || listen(it, 64)) return -1;
    getsockname(it, (sockaddr *)&address, &size);
    port = ntohs(address.sin_port);
    return it;
}

int connected(uint16_t port) {
    int it = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    sockaddr_in address = local(port);
    if (connect(it, (sockaddr *)&address, sizeof address)) return close(it), -1;
    setsockopt(it, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return it;
}

// Moves all bytes, or returns false when it is told to stop, or the other side is gone.
bool all(int socket, void *place, size_t bytes, bool sends, const std::atomic<bool> &stop) {
    for (char *at = (char *)place; bytes;) {
        pollfd ready{socket, (short)(sends ? POLLOUT : POLLIN), 0};
        if (stop) return false;
        if (poll(&ready, 1, 20) <= 0) continue;
        ssize_t moved = sends ? send(socket, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(socket, at, bytes, MSG_DONTWAIT);
        if (moved < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (moved <= 0) return false;
        at += moved;
        bytes -= (size_t)moved;
    }
    return true;
}

// Waits for every rank, and tells all of them where the others are, or what is wrong.
void serve(int listening, uint64_t number) {
    std::atomic<bool> never{false};
    std::map<int, int> sockets;
    std::vector<uint16_t> ports;
    std::set<int> devices;
    int status = OK, size = 1;
    for (int come = 0; come < size; come++) {
        int it = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
        Hello hello{};
        if (it < 0 || !all(it, &hello, sizeof hello, false, never) || hello.number != number) {
            come--;
            continue;
        }
        if (!come) {
            size = hello.size;
            ports.resize((size_t)size);
        }
        bool valid = hello.size == size && hello.rank >= 0 && hello.rank < size && !sockets.count(hello.rank);
        if (!valid) status = refuse(INVALID_ARGUMENT, "join", "a rank twice, or too large, or another number of ranks");
        else if (!devices.insert(hello.device).second) status = refuse(INVALID_USAGE, "join", "two ranks on one device");
        if (valid) ports[(size_t)hello.rank] = hello.port;
        sockets[valid ? hello.rank : -come - 1] = it;
    }
    for (auto &it : sockets) {
        all(it.second, &status, sizeof status, true, never);
        all(it.second, ports.data(), ports.size() * 2, true, never);
        close(it.second);
    }
    close(listening);
}

// Finds the other ranks, and connects to each.
int join(Comm &comm, Root root) {
    uint16_t port = 0;
    int listening = listener(port), status = SYSTEM;
    int to_root = connected(root.port);
    Hello hello{root.number, comm.rank, comm.size, comm.device, port};
    std::vector<uint16_t> ports((size_t)comm.size);
    bool heard = to_root >= 0 && all(to_root, &hello, sizeof hello, true, comm.aborted) &&
                 all(to_root, &status, sizeof status, false, comm.aborted) &&
                 all(to_root, ports.data(), ports.size() * 2, false, comm.aborted);
    close(to_root);
    if (!heard) status = SYSTEM;
    for (int peer = 0; peer < comm.size && status == OK; peer++) {
        if (peer == comm.rank) continue;
        comm.to[(size_t)peer] = connected(ports[(size_t)peer]);
        if (comm.to[(size_t)peer] < 0 || !all(comm.to[(size_t)peer], &comm.rank, sizeof comm.rank, true, comm.aborted))
            status = SYSTEM;
    }
    for (int come = 1; come < comm.size && status == OK;) {
        pollfd ready{listening, POLLIN, 0};
        if (comm.aborted) status = SYSTEM;
        if (poll(&ready, 1, 20) <= 0) continue;
        int it = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC), peer = -1;
        if (!all(it, &peer, sizeof peer, false, comm.aborted)) status = SYSTEM;
        else comm.from[(size_t)peer] = it;
        come++;
    }
    close(listening);
    return status;
}

// Waits as NCCL does for what never comes.
int hang(const Comm &comm) {
    while (!comm.aborted) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return SUCCESS;
}

// One direction of a group.
bool run(Comm &comm, Operation it) {
    int socket = (it.sends ? comm.to : comm.from)[(size_t)it.peer];
    uint64_t bytes = it.bytes;
    char done = 1;
    if (it.sends)
        return all(socket, &bytes, 8, true, comm.aborted) && all(socket, it.place, it.bytes, true, comm.aborted) &&
               all(socket, &done, 1, false, comm.aborted);
    if (!all(socket, &bytes, 8, false, comm.aborted)) return false;
    if (bytes != it.bytes) {
        refuse(0, "ncclRecv", "the partner sends another number of bytes");
        comm.state = INVALID_USAGE;
        return false;
    }
    return all(socket, it.place, it.bytes, false, comm.aborted) && all(socket, &done, 1, true, comm.aborted);
}

int launch(std::vector<Call> group) {
    for (size_t first = 0; first < group.size();) {
        auto comm = group[first].comm;
        Stream *stream = group[first].stream;
        std::vector<Operation> operations;
        for (; first < group.size() && group[first].comm == comm; first++) operations.push_back(group[first].operation);
        std::lock_guard<std::mutex> guard(comm->mutex);
        comm->state = IN_PROGRESS;
        comm->looks = 3;
        comm->deferred = [=] {
            stream->put([=] {
                std::vector<std::thread> threads;
                std::atomic<bool> good{true};
                for (auto &it : operations)
                    threads.emplace_back([&, it] {
                        if (!run(*comm, it)) good = false;
                    });
                for (auto &it : threads) it.join();
                return good ? SUCCESS : hang(*comm);
            });
        };
    }
    return IN_PROGRESS;
}

int add(const char *name, bool sends, uint64_t address, size_t bytes, int type, int peer, Handle *handle, void *stream) {
    auto comm = handle->comm;
    if (!current || current->device != comm->device) return refuse(INVALID_USAGE, name, "another device than its own");
    if (comm->state != OK) return refuse(INVALID_USAGE, name, "before the last call is done");
    if (peer < 0 || peer >= comm->size || peer == comm->rank) return refuse(INVALID_ARGUMENT, name, "no such partner");
    if (type != BYTES || !bytes) return refuse(INVALID_ARGUMENT, name, "another type than bytes, or none");
    char *place = at(address, bytes, comm->device);
    if (!place) return refuse(INVALID_ARGUMENT, name, "beyond an allocation");
    calls.push_back({comm, (Stream *)stream, {sends, peer, place, bytes}});
    if (depth) return OK;
    std::vector<Call> alone;
    alone.swap(calls);
    return launch(alone);
}

} // namespace

EXPORT int ncclGetVersion(int *version) {
    const char *other = getenv("DDT_STAND_IN_NCCL");
    *version = other ? atoi(other) : VERSION;
    return OK;
}

EXPORT const char *ncclGetErrorString(int status) {
    switch (status) {
    case OK: return "no error";
    case SYSTEM: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case IN_PROGRESS: return "NCCL operation in progress";
    }
    return "unknown result code";
}

EXPORT int ncclGetUniqueId(UniqueId *id) {
    Root root{};
    int listening = listener(root.port);
    if (listening < 0) return SYSTEM;
    root.number = ((uint64_t)getpid() << 32) ^ (uint64_t)std::chrono::steady_clock::now().time_since_epoch().count();
    memset(id, 0, sizeof *id);
    memcpy(id, &root, sizeof root);
    std::thread(serve, listening, root.number).detach();
    return OK;
}

EXPORT int ncclCommInitRankConfig(Handle **handle, int size, UniqueId id, int rank, Config *config) {
    if (config->magic != MAGIC || config->size < 20 || config->version < OLDEST_WITHOUT_BLOCKING || config->blocking)
        return refuse(INVALID_ARGUMENT, __func__, "a configuration that blocks, or none");
    if (!current) return refuse(INVALID_USAGE, __func__, "no device on this thread");
    if (rank < 0 || rank >= size) return refuse(INVALID_ARGUMENT, __func__, "the rank");
    auto comm = std::make_shared<Comm>();
    comm->rank = rank, comm->size = size, comm->device = current->device;
    comm->to.assign((size_t)size, -1);
    comm->from.assign((size_t)size, -1);
    Root root;
    memcpy(&root, &id, sizeof root);
    Comm *it = comm.get();
    comm->joining = std::thread([it, root] { it->state = join(*it, root); });
    *handle = new Handle{comm};
    return IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(Handle *handle, int *status) {
    auto &comm = *handle->comm;
    std::lock_guard<std::mutex> guard(comm.mutex);
    if (comm.looks && --comm.looks == 0) {
        if (comm.deferred) comm.deferred();
        comm.deferred = nullptr;
        comm.state = OK;
    }
    *status = comm.state;
    return OK;
}

EXPORT int ncclGroupStart() {
    depth++;
    return OK;
}

EXPORT int ncclGroupEnd() {
    if (!depth) return refuse(INVALID_USAGE, __func__, "no group");
    if (--depth) return OK;
    std::vector<Call> group;
    group.swap(calls);
    return group.empty() ? (int)OK : launch(group);
}

EXPORT int ncclSend(const void *from, size_t bytes, int type, int peer, Handle *comm, void *stream) {
    return add(__func__, true, (uint64_t)from, bytes, type, peer, comm, stream);
}

EXPORT int ncclRecv(void *to, size_t bytes, int type, int peer, Handle *comm, void *stream) {
    return add(__func__, false, (uint64_t)to, bytes, type, peer, comm, stream);
}

EXPORT int ncclCommFinalize(Handle *handle) {
    auto &comm = *handle->comm;
    std::lock_guard<std::mutex> guard(comm.mutex);
    if (comm.state != OK || comm.finalized) return refuse(INVALID_USAGE, __func__, "before the last call is done, or twice");
    comm.finalized = true;
    comm.state = IN_PROGRESS;
    comm.looks = 3;
    return IN_PROGRESS;
}

EXPORT int ncclCommAbort(Handle *handle) {
    handle->comm->aborted = true;
    handle->comm->joining.join();
    handle->comm->deferred = nullptr;
    delete handle;
    return OK;
}

EXPORT int ncclCommDestroy(Handle *handle) {
    if (!handle->comm->finalized || handle->comm->state != OK) return refuse(INVALID_USAGE, __func__, "it is not finalized");
    return ncclCommAbort(handle);
}
