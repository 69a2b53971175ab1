import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { ErrorBoundary } from "./ErrorBoundary.jsx";
import { StreamingChat } from "./StreamingChat.jsx";
import "./style.css";

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <main>
      <h1>Streaming chat</h1>
      <ErrorBoundary>
        <StreamingChat />
      </ErrorBoundary>
    </main>
  </StrictMode>,
);
