// Finished pictures in this browser's own database: they stay when the page is loaded again or the server is.

const NAME = "mlx-imagegen";
const MOST = 200;

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, work) {
  const transaction = (await open()).transaction("pictures", mode);
  const request = work(transaction.objectStore("pictures"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// The newest first.
export const all = async () => (await run("readonly", (store) => store.getAll())).reverse();
export const remove = (id) => run("readwrite", (store) => store.delete(id));
export const clear = () => run("readwrite", (store) => store.clear());

export async function add(item) {
  const id = await run("readwrite", (store) => store.add(item));
  const keys = await run("readonly", (store) => store.getAllKeys());
  for (const old of keys.slice(0, Math.max(0, keys.length - MOST))) await remove(old);
  return { ...item, id };
}
