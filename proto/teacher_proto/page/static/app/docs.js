// /docs: Swagger UI over /openapi.json, with this tab's token.
import { askJson, serverAddress, setToken, token } from "./ask.js";

const part = (id) => document.getElementById(id);

// Of several teachers a question has to name one.
function nameTeacher(described, teachers) {
  if (teachers.length < 2) return;
  for (const path of ["/v1/score", "/v1/render"]) {
    const { examples } = described.paths[path].post.requestBody.content["application/json"];
    for (const example of Object.values(examples)) example.value.teacher = teachers[0].name;
  }
}

function withToken(request) {
  const headers = token() ? { ...request.headers, Authorization: `Bearer ${token()}` } : request.headers;
  return { ...request, headers };
}

async function show() {
  let described;
  try {
    described = await askJson("/openapi.json");
  } catch (error) {
    part("problem").textContent = error.told ?? String(error);
    part("problem").hidden = false;
    part("token-form").hidden = !error.wantsToken;
    return;
  }
  try {
    nameTeacher(described, (await askJson("/v1/teacher")).teachers);
  } catch { /* models are loading: the interface is shown all the same */ }
  part("problem").hidden = true;
  part("token-form").hidden = true;
  described.servers = [{ url: serverAddress() }];  // behind a prefix of a proxy too
  globalThis.SwaggerUIBundle({
    spec: described,
    domNode: part("swagger"),
    deepLinking: false,
    tryItOutEnabled: true,
    validatorUrl: null,
    queryConfigEnabled: false,
    // The token goes with what is sent, and not into what is shown and copied.
    requestInterceptor: withToken,
    showMutatedRequest: false,
  });
}

part("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(part("token").value.trim());
  show();
});
show();
