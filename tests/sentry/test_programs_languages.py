"""Runtimes with threads, garbage collectors and compilers of their own: node, Java, Go; from Debian's packages."""

from __future__ import annotations

from tests.sentry.test_programs_shell import script
from tests.vm.support import Casemate

NODE = """
cat > work.js <<'X'
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (isMainThread) {
  const lines = [];
  const shared = new SharedArrayBuffer(8), counter = new Int32Array(shared);
  const workers = [1, 2, 3, 4].map(() => new Promise((done, failed) => {
    const worker = new Worker(__filename, { workerData: shared });
    worker.on('exit', done); worker.on('error', failed);
  }));
  const zip = new Promise(done =>
    require('zlib').gzip(Buffer.alloc(1 << 20), (error, data) => done(data.length < 5000)));
  const key = new Promise(done =>
    require('crypto').pbkdf2('a', 'b', 1000, 8, 'sha256', (error, data) => done(data.length)));
  const child = new Promise(done => require('child_process').execFile('sh', ['-c', 'echo child; exit 3'],
    (error, out) => done(out.trim() + error.code)));
  const http = new Promise(done => {
    const server = require('http').createServer((request, response) => response.end('over http'));
    server.listen(0, '127.0.0.1', () => require('http').get({ port: server.address().port }, response =>
      response.on('data', data => { server.close(); done(data.toString()); })));
  });
  const timer = new Promise(done => setTimeout(() => done('timer'), 50));
  const module = WebAssembly.instantiate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0])).then(() => 'wasm');
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536 }); memory.grow(100);
  Promise.all([Promise.all(workers).then(() => Atomics.load(counter, 0)), zip, key, child, http, timer, module])
    .then(all => { all.forEach(one => console.log(one)); console.log(memory.buffer.byteLength); process.exit(0); });
} else {
  const counter = new Int32Array(workerData);
  for (let i = 0; i < 50000; i++) Atomics.add(counter, 0, 1);
  let garbage = []; for (let i = 0; i < 100; i++) garbage.push(new Array(10000).fill(i));
}
X
node work.js
node --max-old-space-size=50 -e 'let n = 0; for (let i = 0; i < 200; i++) n += new Array(100000).fill(1.5).length;
  console.log(n)'
"""


def test_node(cm: Casemate, programs: str) -> None:
    assert script(cm, programs, NODE) == [
        "200000", "true", "8", "child3", "over http", "timer", "wasm", "6619136", "20000000",
    ]  # fmt: skip


JAVA = """
cat > Work.java <<'X'
import java.nio.*; import java.nio.channels.*; import java.nio.file.*; import java.util.*;
import java.util.concurrent.*; import java.util.concurrent.atomic.*; import java.util.stream.*;
public class Work {
  static int deep(int n) { return deep(n + 1) + 1; }
  public static void main(String[] arguments) throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(4);
    AtomicLong sum = new AtomicLong();
    List<Future<?>> futures = new ArrayList<>();
    for (int i = 0; i < 200; i++) {
      final int number = i;
      futures.add(pool.submit(() -> {
        List<byte[]> garbage = new ArrayList<>();
        for (int j = 0; j < 100; j++) garbage.add(new byte[10000]);
        synchronized (Work.class) { sum.addAndGet(number + garbage.size()); }
      }));
    }
    for (Future<?> future : futures) future.get();
    pool.shutdown();
    System.out.println(sum.get());
    try { Object none = null; none.toString(); } catch (NullPointerException error) { System.out.println("null"); }
    try { deep(0); } catch (StackOverflowError error) { System.out.println("stack"); }
    try { List<byte[]> all = new ArrayList<>(); while (true) all.add(new byte[1 << 20]); }
    catch (OutOfMemoryError error) { System.out.println("heap"); }
    System.gc();
    Path path = Files.createTempFile("work", "x");
    try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
      MappedByteBuffer mapped = channel.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
      mapped.putInt(5000, 42); mapped.force();
      ByteBuffer read = ByteBuffer.allocate(4); channel.read(read, 5000); read.flip();
      System.out.println(read.getInt());
    }
    System.out.println(IntStream.range(0, 1000000).parallel().mapToLong(x -> x % 7).sum());
    CountDownLatch latch = new CountDownLatch(100);
    for (int i = 0; i < 100; i++) new Thread(() -> { try { Thread.sleep(20); } catch (InterruptedException e) { }
      latch.countDown(); }).start();
    latch.await();
    Process child = new ProcessBuilder("sh", "-c", "exit 3").inheritIO().start();
    System.out.println(child.waitFor());
    ServerSocketChannel server = ServerSocketChannel.open().bind(new java.net.InetSocketAddress("127.0.0.1", 0));
    SocketChannel client = SocketChannel.open(server.getLocalAddress());
    server.accept().write(ByteBuffer.wrap("net".getBytes()));
    ByteBuffer got = ByteBuffer.allocate(3); client.read(got);
    System.out.println(new String(got.array()));
    Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
    System.exit(7);
  }
}
X
javac Work.java
for gc in G1 Serial Parallel; do java -Xmx64m -XX:+Use${gc}GC -cp . Work || echo "ended $?"; done
"""


def test_java(cm: Casemate, programs: str) -> None:
    once = ["39900", "null", "stack", "heap", "42", "2999997", "3", "net", "hook", "ended 7"]
    assert script(cm, programs, JAVA) == once * 3


GO = """
export HOME=/tmp CGO_ENABLED=0
cat > work.go <<'X'
package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
)

func main() {
	var group sync.WaitGroup
	var mutex sync.Mutex
	count := 0
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for j := 0; j < 1000; j++ {
				mutex.Lock()
				count++
				mutex.Unlock()
			}
			block := make([]byte, 1<<20)
			block[5] = 1
		}()
	}
	go func() { // never gives way by itself: has to be interrupted
		for i := 0; ; i++ {
		}
	}()
	group.Wait()
	runtime.GC()
	fmt.Println(count)
	ticker := time.NewTicker(5 * time.Millisecond)
	for i := 0; i < 5; i++ {
		<-ticker.C
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println(<-signals)
	output, err := exec.Command("sh", "-c", "echo child; exit 3").Output()
	fmt.Print(string(output), err, "\\n")
	listener, _ := net.Listen("tcp", "127.0.0.1:0")
	go func() {
		connection, _ := listener.Accept()
		connection.Write([]byte("net"))
		connection.Close()
	}()
	connection, _ := net.Dial("tcp", listener.Addr().String())
	buffer := make([]byte, 10)
	n, _ := connection.Read(buffer)
	fmt.Println(string(buffer[:n]))
	defer func() { fmt.Println(recover()) }()
	var none *int
	*none = 1
}
X
go build -o work work.go
./work
"""


def test_go(cm: Casemate, programs: str) -> None:
    assert script(cm, programs, GO) == [
        "100000", "user defined signal 1", "child", "exit status 3", "net",
        "runtime error: invalid memory address or nil pointer dereference",
    ]  # fmt: skip
