import { Component } from "react";

// What a part of the page cannot do must not take the rest of it away.
export class ErrorBoundary extends Component {
  state = { error: null };

  static getDerivedStateFromError(error) {
    return { error };
  }

  render() {
    if (!this.state.error) return this.props.children;
    return (
      <div role="alert" className="problem">
        <p>The chat has failed: {String(this.state.error.message)}</p>
        <button type="button" onClick={() => this.setState({ error: null })}>
          Start over
        </button>
      </div>
    );
  }
}
