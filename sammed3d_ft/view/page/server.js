// Communication with the server: the token of the link, JSON, and responses of JSON with raw bytes.

const fromLink = location.hash.slice(1);
if (fromLink) {
  sessionStorage.setItem("token", fromLink); // per tab, so that reloading works
  history.replaceState(null, "", location.pathname);
}
const token = fromLink || sessionStorage.getItem("token") || "";

export class ServerError extends Error {}
export class ServerGone extends Error {}

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers: { "x-viewer-token": token },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ServerGone("no answer");
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  throw new ServerError(found.error || `the server answered ${answer.status}`);
}

export const get = async (path) => (await ask(path)).json();
export const post = async (path, body = {}) => (await ask(path, body)).json();
export const bytes = async (path) => (await ask(path)).arrayBuffer();

// {head, labels}: labels are codes of lesions (Uint16Array) in head.box, or null.
export async function framed(path, body) {
  const buffer = await (await ask(path, body)).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const rest = buffer.byteLength - 4 - length;
  return { head, labels: rest ? new Uint16Array(buffer, 4 + length, rest / 2) : null };
}
