// Calls to the server. A refusal is an Error with the server's message and the status.

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refusal(0, "The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, answer.error?.message ?? `The server answered ${response.status}.`);
  return answer;
}

export const models = () => call("GET", "/models");
export const fits = (name) => call("GET", `/models/${encodeURIComponent(name)}/fits`);
export const start = (fields) => call("POST", "/jobs", fields);
export const job = (id) => call("GET", `/jobs/${id}`);
export const cancel = (id) => call("DELETE", `/jobs/${id}`);
export const session = (token) => call("POST", "/session", { token });

export async function picture(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Refusal(response.status, "The picture is not kept any more.");
  return response.blob();
}

// Follows a job until it is done, failed or cancelled: resolves with its last description.
export function follow(id, { onProgress, onPreview }) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`/jobs/${id}/events`);
    const read = (event) => JSON.parse(event.data);
    source.addEventListener("progress", (event) => onProgress(read(event)));
    source.addEventListener("preview", (event) => onPreview(read(event).image));
    for (const state of ["done", "failed", "cancelled"]) {
      source.addEventListener(state, (event) => {
        source.close();
        resolve(read(event));
      });
    }
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) reject(new Refusal(0, "The job is gone: the server was started again."));
      else onProgress(null);
    };
  });
}
