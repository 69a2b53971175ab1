import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const gateway = process.env.MILLRACE_URL ?? "http://127.0.0.1:8080";

// The page and the gateway have to look like one origin. Elsewhere a reverse proxy does that, or the page's origin stands
// in server.cors_origins.
const proxy = {
  "/api": {
    target: gateway,
    changeOrigin: true,
    headers: { origin: gateway },
    configure(server) {
      // A broken answer must reach the page broken: left to itself, the proxy would end it as if it were whole.
      server.on("proxyRes", (answer, request, response) => answer.on("close", () => answer.complete || response.destroy()));
    },
  },
};

export default defineConfig({ plugins: [react()], server: { proxy }, preview: { proxy } });
