"""Programs that answer line by line."""

from __future__ import annotations

import sys

from tests.real.programs.base import Talker


class Threads(Talker):
    """CPython with threads."""

    script = """
import queue, sys, threading
todo, done, table, lock = queue.Queue(), queue.Queue(), {}, threading.Lock()
def work():
    while True:
        n = todo.get()
        with lock: table[n] = [str(n)] * 50
        done.put(n)
for _ in range(4): threading.Thread(target=work, daemon=True).start()
total = 0
for line in sys.stdin:
    if line.startswith("bump"):
        for i in range(8): todo.put(total * 8 + i)
        got = sorted(done.get() for _ in range(8))
        assert got == [total * 8 + i for i in range(8)], got
        total += 1
    assert all(table[n] == [str(n)] * 50 for n in range(total * 8))
    print(total, flush=True)
"""

    def argv(self) -> list[object]:
        return [sys.executable, "-c", self.script]


class Asyncio(Threads):
    """CPython with asyncio: timers, a loop-back server."""

    script = """
import asyncio, sys
async def serve(reader, writer):
    while line := await reader.readline(): writer.write(line.upper()); await writer.drain()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    total = 0
    while line := await lines.readline():
        if line.startswith(b"bump"):
            await asyncio.gather(*(asyncio.sleep(0.001 * i) for i in range(5)))
            writer.write(b"n%d\\n" % total)
            assert await reader.readline() == b"N%d\\n" % total
            total += 1
        print(total, flush=True)
asyncio.run(main())
"""


class Bash(Talker):
    ask = "i=$((i+1)); s=$s.; [ ${#s} = $i ] && echo $i"
    tell = "echo $((i+0))"

    def argv(self) -> list[object]:
        return [self.tool("bash"), "--norc"]


class Sqlite(Talker):
    ask = (
        "insert into t select (select count(*) from t), hex(zeroblob(500)); "
        "select count(*) from t where x = hex(zeroblob(500));"
    )
    tell = "create table if not exists t (n integer primary key, x text); select count(*) from t;"

    def argv(self) -> list[object]:
        return [self.tool("sqlite3"), "-batch", ":memory:"]


class Java(Talker):
    ends_threads = True
    source = """
import java.util.*; import java.util.concurrent.*; import java.util.stream.*;
public class Main {
  public static void main(String[] a) throws Exception {
    Scanner in = new Scanner(System.in); ExecutorService pool = Executors.newFixedThreadPool(3);
    Map<Integer, byte[]> kept = new ConcurrentHashMap<>(); int total = 0;
    while (in.hasNextLine()) {
      if (in.nextLine().startsWith("bump")) {
        final int t = total; List<Future<Integer>> all = new ArrayList<>();
        for (int i = 0; i < 6; i++) { final int k = i; all.add(pool.submit(() -> {
          byte[] b = new byte[100000]; Arrays.fill(b, (byte) (t + k)); kept.put(k, b);
          return IntStream.range(0, 100000).map(j -> b[j] == (byte) (t + k) ? 1 : 0).sum(); })); }
        for (Future<Integer> f : all) if (f.get() != 100000) throw new Exception("torn");
        total++;
      }
      System.out.println(total);
    }
  }
}
"""

    def argv(self) -> list[object]:
        path = self.directory / "Main.java"
        path.write_text(self.source)
        return [self.tool("java"), "-Xmx128m", path]
